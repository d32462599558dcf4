"""A profile: what the forwards of a pair take on some hardware, and how much of it there is."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specbranch.errors import InputError


@dataclass(frozen=True)
class ModelLatency:
    """What a model's forwards take on some hardware.

    Attributes:
        forward: seconds by the number of tokens (of a draft's step: of branches), linear between
            the numbers given and level beyond them.
        call: seconds for each call of the executor besides: messages, and what surrounds the
            forwards.
        alone: the same with all the hardware, while the other executor waits; None where each
            executor has
            hardware that the other cannot use.
    """

    forward: Mapping[int, float]
    call: float = 0.0
    alone: ModelLatency | None = None

    def seconds(self, tokens: int) -> float:
        """Duration of a forward of that many tokens."""
        known = sorted(self.forward)
        if tokens in self.forward or tokens <= known[0] or tokens >= known[-1]:
            return self.forward[min(max(tokens, known[0]), known[-1])]
        above = bisect_left(known, tokens)
        low, high = known[above - 1], known[above]
        share = (tokens - low) / (high - low)
        return self.forward[low] * (1 - share) + self.forward[high] * share

    @classmethod
    def parse(cls, found: Any) -> ModelLatency:
        """ModelLatency as JSON has them.

        Raises:
            ValueError, KeyError, AttributeError, TypeError: it is something else.
        """
        return cls(
            {int(n): float(s) for n, s in found["forward"].items()},
            float(found.get("call", 0)),
            cls.parse(found["alone"]) if found.get("alone") else None,
        )

    @property
    def valid(self) -> bool:
        """Whether there are seconds for one token or more, and none is negative."""
        given = self.forward and min(*self.forward, *self.forward.values()) > 0 and self.call >= 0
        return bool(given) and (self.alone is None or self.alone.valid)


@dataclass(frozen=True)
class Devices:
    """How much hardware a method takes: what is bought, and what decoding it plainly would leave.

    Attributes:
        unit: of what: `GPU`, `core`.
        plain: for plain decoding.
        sequential: for both models, one of which works at a time.
        parallel: for both at the same time.
    """

    unit: str = "device"
    plain: int = 1
    sequential: int = 1
    parallel: int = 2


@dataclass(frozen=True)
class Profile:
    """ModelLatency of both executors of a pair on some hardware.

    Attributes:
        plain: seconds of plain decoding's forward at its own fastest width, where that is not the
            bit-exact one of a single token alone.
        devices: that it takes.
        source: where the figures are from, in a line or two.
        machine: what was measured, by name of the fact.
    """

    target: ModelLatency
    draft: ModelLatency
    plain: float | None = None
    devices: Devices = Devices()
    source: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_ratio(cls, c: float, branch_cost: float = 0.0, step: float = 1e-3) -> Profile:
        """Time in the abstract.

        Args:
            c: time of a target forward, of however many tokens, in draft steps.
            branch_cost: what a branch more adds to a draft step, as a share of it.
            step: seconds of a draft step of one branch.
        """
        most = 256
        draft = {k: step * (1 + branch_cost * (k - 1)) for k in (1, most)}
        source = f"c = {c:g}, a draft step of {1e3 * step:g} ms, {branch_cost:g} of it a branch"
        return cls(ModelLatency({1: c * step}), ModelLatency(draft), source=source)

    @classmethod
    def load(cls, file: Path) -> Profile:
        """Read a profile as `save` writes it; all but the executors' forwards may be missing.

        Raises:
            InputError: no such file, or no profile.
        """
        try:
            found = json.loads(file.read_text())
            profile = cls(
                ModelLatency.parse(found["target"]),
                ModelLatency.parse(found["draft"]),
                None if found.get("plain") is None else float(found["plain"]),
                Devices(**found.get("devices", {})),
                str(found.get("source", "")),
                {str(fact): str(value) for fact, value in found.get("machine", {}).items()},
            )
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f'{file} is no profile: it needs {{"target": {{"forward": {{"1": seconds, …}}}}, '
                '"draft": {…}}'
            ) from error
        if not (profile.target.valid and profile.draft.valid):
            raise InputError(
                f"{file}: a profile needs seconds for 1 or more tokens of each executor"
            )
        counts = (profile.devices.plain, profile.devices.sequential, profile.devices.parallel)
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise InputError(f"{file}: each method of a profile takes 1 device or more")
        return profile

    def save(self, file: Path) -> None:
        """Write the profile as JSON."""
        file.write_text(json.dumps(_without_gaps(asdict(self)), indent=2) + "\n")


def _without_gaps(found: Any) -> Any:
    """The same without what is not known."""
    if not isinstance(found, dict):
        return found
    return {k: _without_gaps(v) for k, v in found.items() if v is not None and v not in ("", {})}
