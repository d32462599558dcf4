"""Latency profiles: the durations of a pair's forward passes on some hardware."""

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
    """Latency of a model's forward passes on some hardware.

    Attributes:
        forward: seconds by number of tokens (for a draft step: of branches). Values between the
            given numbers are interpolated linearly; beyond them the nearest value holds.
        call: seconds that each request takes besides its forward passes.
        alone: the latency with all the hardware, while the other executor waits; None if each
            executor has hardware that the other cannot use.
    """

    forward: Mapping[int, float]
    call: float = 0.0
    alone: ModelLatency | None = None

    def seconds(self, tokens: int) -> float:
        """Return the duration in seconds of a forward pass of that many tokens."""
        known = sorted(self.forward)
        if tokens in self.forward or tokens <= known[0] or tokens >= known[-1]:
            return self.forward[min(max(tokens, known[0]), known[-1])]
        above = bisect_left(known, tokens)
        low, high = known[above - 1], known[above]
        share = (tokens - low) / (high - low)
        return self.forward[low] * (1 - share) + self.forward[high] * share

    @classmethod
    def parse(cls, found: Any) -> ModelLatency:
        """Convert from the JSON form.

        Raises:
            ValueError, KeyError, AttributeError, TypeError: the JSON has another form.
        """
        return cls(
            {int(n): float(s) for n, s in found["forward"].items()},
            float(found.get("call", 0)),
            cls.parse(found["alone"]) if found.get("alone") else None,
        )

    @property
    def valid(self) -> bool:
        """Whether at least one forward latency is given and all values are in range."""
        given = self.forward and min(*self.forward, *self.forward.values()) > 0 and self.call >= 0
        return bool(given) and (self.alone is None or self.alone.valid)


@dataclass(frozen=True)
class Devices:
    """The amount of hardware that each way of decoding occupies.

    Attributes:
        unit: what is counted, such as `GPU` or `core`.
        plain: for plain decoding.
        sequential: for both models if one of them works at a time.
        parallel: for both models at the same time.
    """

    unit: str = "device"
    plain: int = 1
    sequential: int = 1
    parallel: int = 2


@dataclass(frozen=True)
class Profile:
    """Latencies of both executors of a pair on some hardware.

    Attributes:
        target, draft: latencies of the two models.
        plain: seconds of a forward pass of plain decoding at its own fastest query length; None
            if that is the target's for one token.
        devices: amount of hardware that each way of decoding occupies.
        source: origin of the figures, in a line or two.
        machine: properties of the measured machine, by name.
    """

    target: ModelLatency
    draft: ModelLatency
    plain: float | None = None
    devices: Devices = Devices()
    source: str = ""
    machine: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_ratio(cls, c: float, branch_cost: float = 0.0, step: float = 1e-3) -> Profile:
        """Make the profile of an idealised machine.

        Args:
            c: duration of a target forward pass of any number of tokens, in draft steps.
            branch_cost: what each further branch adds to a draft step, as a fraction of it.
            step: seconds of a draft step of one branch.
        """
        most = 256
        draft = {k: step * (1 + branch_cost * (k - 1)) for k in (1, most)}
        source = f"c = {c:g}, a draft step of {1e3 * step:g} ms, {branch_cost:g} of it a branch"
        return cls(ModelLatency({1: c * step}), ModelLatency(draft), source=source)

    @classmethod
    def load(cls, file: Path) -> Profile:
        """Read a profile in the format of `save`; only the `forward` entries are required.

        Raises:
            InputError: the file cannot be read or is no profile.
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
    """Return a JSON object without its empty entries."""
    if not isinstance(found, dict):
        return found
    return {k: _without_gaps(v) for k, v in found.items() if v is not None and v not in ("", {})}
