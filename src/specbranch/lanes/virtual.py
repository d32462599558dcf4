"""The virtual clock lane: the real algorithm, timed by a profile instead of by this machine.

Calls run inline, but their spans come from what the profile says that each forward takes. Lanes
that share a `VirtualClock` overlap on it, so that one decoder yields a deterministic timeline for
any hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from specbranch.lanes.base import AwaitedCall, Call, Host, Span, Worker
from specbranch.lanes.placement import Placement, Share
from specbranch.lanes.profile import Costs, Devices, Profile

__all__ = [
    "PLACEMENT",
    "Costs",
    "Devices",
    "Profile",
    "VirtualClock",
    "VirtualLane",
    "placement_of",
]

# Of a virtual machine, whatever the real one has: shares that differ, so that a lane can tell.
PLACEMENT = Placement(target=Share(1), draft=Share(1), alone=Share(2))
# And one where each lane has hardware that the other cannot use.
APART = Placement(target=Share(1), draft=Share(1), alone=Share(1))


def placement_of(profile: Profile | None) -> Placement:
    """Of the lanes on a machine with this profile."""
    return PLACEMENT if profile is not None and profile.target.alone is not None else APART


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
        self.costs = lane.costs
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

    Attributes:
        costs: those that the next call has, by the share that the lane has now.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], name: str, costs: Costs, clock: VirtualClock
    ) -> None:
        self.name = name
        self.clock = clock
        self.costs = costs
        self._host = Host(name, make_worker)
        self._beside, self._alone = costs, costs.alone or costs
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
        self.costs = self._alone if share == PLACEMENT.alone else self._beside

    def now(self) -> float:
        return self.clock.now

    def close(self) -> None:
        while self._calls:
            self._run(self._calls.popleft())
        del self._host

    def _run(self, call: VirtualCall) -> None:
        start = max(call.submitted, self._free)

        def end(forwards: tuple[int, ...]) -> float:
            return start + call.costs.call + sum(map(call.costs.seconds, forwards))

        def stopped() -> bool:
            return end(self._host.forwards) >= call.stopped_at

        reply = self._host.run(call.method, call.args, stopped)
        self._free = end(reply.span.forwards)
        span = Span(start, self._free, reply.span.forwards)
        replace(reply, span=span).settle(call)
