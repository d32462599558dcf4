"""The virtual clock lane: the real algorithm, timed by a profile instead of by this machine.

Calls run inline, but their spans come from what the profile says that each forward takes. Lanes
that share a `VirtualClock` overlap on it, so that one decoder yields a deterministic timeline for
any hardware.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specbranch.errors import InputError
from specbranch.lanes.base import AwaitedCall, Call, Host, Span, Worker
from specbranch.lanes.placement import Share


@dataclass(frozen=True)
class Costs:
    """What a model's forwards take on some hardware.

    Attributes:
        forward: seconds by the number of tokens (of a draft's step: of branches), linear between
            the numbers given and level beyond them.
        call: seconds for each call of the lane besides: messages, and what surrounds the forwards.
    """

    forward: Mapping[int, float]
    call: float = 0.0

    def seconds(self, tokens: int) -> float:
        """Duration of a forward of that many tokens."""
        known = sorted(self.forward)
        if tokens in self.forward or tokens <= known[0] or tokens >= known[-1]:
            return self.forward[min(max(tokens, known[0]), known[-1])]
        above = bisect_left(known, tokens)
        low, high = known[above - 1], known[above]
        share = (tokens - low) / (high - low)
        return self.forward[low] * (1 - share) + self.forward[high] * share


@dataclass(frozen=True)
class Profile:
    """Costs of both lanes of a pair on some hardware."""

    target: Costs
    draft: Costs

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
        return cls(Costs({1: c * step}), Costs(draft))

    @classmethod
    def load(cls, file: Path) -> Profile:
        """Read a profile as `save` writes it.

        Raises:
            InputError: no such file, or no profile.
        """
        try:
            found = json.loads(file.read_text())
            lanes = {
                lane: Costs(
                    {int(n): float(s) for n, s in found[lane]["forward"].items()},
                    float(found[lane].get("call", 0)),
                )
                for lane in ("target", "draft")
            }
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f'{file} is no profile: it needs {{"target": {{"forward": {{"1": seconds, …}}}}, '
                '"draft": {…}}'
            ) from error
        if not all(c.forward and min(*c.forward, *c.forward.values()) > 0 for c in lanes.values()):
            raise InputError(f"{file}: a profile needs seconds for 1 or more tokens of each lane")
        return cls(**lanes)

    def save(self, file: Path) -> None:
        """Write the profile as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass
class VirtualClock:
    """Where the decoder is in time; it moves on when the decoder waits for a call."""

    now: float = 0.0


class VirtualCall(AwaitedCall):
    """A call that runs when somebody waits for it: only then is it known whether it is stopped."""

    def __init__(self, lane: VirtualLane, method: str, args: tuple[Any, ...]) -> None:
        super().__init__(lane)
        self._clock = lane.clock
        self.method, self.args = method, args
        self.submitted = lane.clock.now
        self.stopped_at = float("inf")

    def stop(self) -> None:
        self.stopped_at = min(self.stopped_at, self._clock.now)


class VirtualLane:
    """Inline calls, timed by a profile.

    Args:
        make_worker: called at once.
        name: of the lane.
        costs: of its model.
        clock: shared by the lanes of a pair.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], name: str, costs: Costs, clock: VirtualClock
    ) -> None:
        self.name = name
        self.clock = clock
        self._host = Host(name, make_worker)
        self._costs = costs
        self._free = 0.0
        self._calls: deque[VirtualCall] = deque()

    def submit(self, method: str, *args: Any) -> Call:
        call = VirtualCall(self, method, args)
        self._calls.append(call)
        return call

    def wait(self, call: VirtualCall) -> None:
        """Run the calls up to `call`, and put the clock to its end."""
        while not call.done():
            self._run(self._calls.popleft())
        self.clock.now = max(self.clock.now, call.span.end)

    def occupy(self, share: Share) -> None:
        """Nothing to do: the profile says how fast the lane is."""

    def now(self) -> float:
        return self.clock.now

    def close(self) -> None:
        while self._calls:
            self._run(self._calls.popleft())
        del self._host

    def _run(self, call: VirtualCall) -> None:
        start = max(call.submitted, self._free)

        def end(forwards: tuple[int, ...]) -> float:
            return start + self._costs.call + sum(map(self._costs.seconds, forwards))

        def stopped() -> bool:
            return end(self._host.forwards) >= call.stopped_at

        reply = self._host.run(call.method, call.args, stopped)
        self._free = end(reply.span.forwards)
        span = Span(start, self._free, reply.span.forwards)
        replace(reply, span=span).settle(call)
