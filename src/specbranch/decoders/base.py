"""What every decoding method is given, and what it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from specbranch.errors import InputError
from specbranch.lanes.base import Lane
from specbranch.metrics import Round
from specbranch.pace import Pace
from specbranch.sequence import Sequence

MOST_GAMMA = 15  # of γ = auto: with the last committed token a chain fills a fixed width of 16


@dataclass(frozen=True)
class DecodingOptions:
    """How much to draft.

    Attributes:
        gamma: γ, most tokens drafted ahead in one round; `auto` follows the measured c, so that
            the draft is done when the target is, and stops a branch stage when that is verified.
        epsilon: ε, draft confidence below which a position is uncertain.
        k_max: most branches in one round.
        branching: for what: the likeliest `outcomes` anywhere on the chain (DESIGN §4b), or the
            candidates at the one branch `point` after it (the paper).

    Raises:
        InputError: a value out of its range.
    """

    gamma: int | Literal["auto"] = "auto"
    epsilon: float = 0.1
    k_max: int = 10
    branching: Literal["outcomes", "point"] = "outcomes"

    def __post_init__(self) -> None:
        checks = [
            (
                "gamma",
                self.gamma == "auto" or (isinstance(self.gamma, int) and self.gamma >= 1),
                "1 or more, or auto",
            ),
            ("epsilon", 0 <= self.epsilon <= 1, "between 0 and 1"),
            ("k_max", self.k_max >= 1, "1 or more"),
        ]
        rules = ("outcomes", "point")
        checks.append(("branching", self.branching in rules, " or ".join(rules)))
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")

    def gamma_at(self, pace: Pace) -> int:
        """γ, given how fast the lanes are."""
        if self.gamma != "auto":
            return self.gamma
        return MOST_GAMMA if pace.c is None else max(1, min(int(pace.c), MOST_GAMMA))

    @property
    def branch_tokens(self) -> int:
        """Most tokens that the branches of one round hold together."""
        return self.k_max * ((MOST_GAMMA if self.gamma == "auto" else self.gamma) + 1)


@dataclass
class Lanes:
    """The two lanes of a pair, and how fast they are; plain decoding has no draft."""

    target: Lane
    draft: Lane | None = None
    pace: Pace = field(default_factory=Pace)

    def all(self) -> list[Lane]:
        return [lane for lane in (self.target, self.draft) if lane is not None]


class Decoder(Protocol):
    """A decoding method. The sequence must be open on the lanes that the method uses."""

    def __call__(
        self, sequence: Sequence, lanes: Lanes, options: DecodingOptions
    ) -> Iterator[Round]:
        """Generate until the sequence is finished, yielding each round when it is committed."""
