"""What every decoding method is given, and what it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

from specbranch.errors import InputError
from specbranch.lanes.base import Lane
from specbranch.metrics import Round
from specbranch.sequence import Sequence


@dataclass(frozen=True)
class DecodingOptions:
    """How much to draft.

    Attributes:
        gamma: γ, most tokens drafted ahead in one round.
        epsilon: ε, draft confidence below which a position is uncertain.
        k_max: most branches at a branch point.

    Raises:
        InputError: a value out of its range.
    """

    gamma: int = 8
    epsilon: float = 0.4
    k_max: int = 10

    def __post_init__(self) -> None:
        checks = [
            ("gamma", self.gamma >= 1, "1 or more"),
            ("epsilon", 0 <= self.epsilon <= 1, "between 0 and 1"),
            ("k_max", self.k_max >= 1, "1 or more"),
        ]
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")

    @property
    def branch_tokens(self) -> int:
        """Most tokens that the branches of one round hold together."""
        return self.k_max * (self.gamma + 1)


@dataclass(frozen=True)
class Lanes:
    """The two lanes of a pair; plain decoding has no draft."""

    target: Lane
    draft: Lane | None = None

    def all(self) -> list[Lane]:
        return [lane for f in fields(self) if (lane := getattr(self, f.name)) is not None]


class Decoder(Protocol):
    """A decoding method. The sequence must be open on the lanes that the method uses."""

    def __call__(
        self, sequence: Sequence, lanes: Lanes, options: DecodingOptions
    ) -> Iterator[Round]:
        """Generate until the sequence is finished, yielding each round when it is committed."""
