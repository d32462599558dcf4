"""The virtual clock executor: the real algorithm, timed by a profile instead of by this machine.

Calls run inline, but their spans come from what the profile says that each forward takes. Executors
that share a `VirtualClock` overlap on it, so that one decoder yields a deterministic timeline for
any hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from specbranch.executors.base import AwaitedCall, Call, Host, Span, Worker
from specbranch.executors.cpu_affinity import AffinityPlan, CpuAffinity
from specbranch.executors.latency_profile import Devices, ModelLatency, Profile

__all__ = [
    "PLACEMENT",
    "Devices",
    "ModelLatency",
    "Profile",
    "VirtualClock",
    "VirtualExecutor",
    "affinity_of",
]

# Of a virtual machine, whatever the real one has: shares that differ, so that a executor can tell.
PLACEMENT = AffinityPlan(target=CpuAffinity(1), draft=CpuAffinity(1), alone=CpuAffinity(2))
# And one where each executor has hardware that the other cannot use.
APART = AffinityPlan(target=CpuAffinity(1), draft=CpuAffinity(1), alone=CpuAffinity(1))


def affinity_of(profile: Profile | None) -> AffinityPlan:
    """Of the executors on a machine with this profile."""
    return PLACEMENT if profile is not None and profile.target.alone is not None else APART


@dataclass
class VirtualClock:
    """Where the decoder is in time; it moves on when the decoder waits for a call."""

    now: float = 0.0


class VirtualCall(AwaitedCall):
    """A call that runs when somebody waits for it: only then is it known whether it is stopped."""

    def __init__(self, executor: VirtualExecutor, method: str, args: tuple[Any, ...]) -> None:
        super().__init__(executor)
        self._clock = executor.clock
        self.method, self.args = method, args
        self.costs = executor.costs
        self.submitted = executor.clock.now
        self.stopped_at = float("inf")

    def stop(self) -> None:
        self.stopped_at = min(self.stopped_at, self._clock.now)


class VirtualExecutor:
    """Inline calls, timed by a profile.

    Args:
        make_worker: called at once.
        name: of the executor.
        costs: of its model.
        clock: shared by the executors of a pair.

    Attributes:
        costs: those that the next call has, by the share that the executor has now.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], name: str, costs: ModelLatency, clock: VirtualClock
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

    def set_affinity(self, share: CpuAffinity) -> None:
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
