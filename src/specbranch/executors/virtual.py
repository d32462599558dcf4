"""The virtual executor: the real algorithm, timed by a profile instead of by this machine.

Requests run inline, but their spans follow from the profile's latency of each forward pass.
Executors that share a `VirtualClock` overlap on it, so the timeline of a decoder is deterministic
and can describe any hardware.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from specbranch.executors.base import (
    BaseExecutor,
    Future,
    LazyFuture,
    R,
    Request,
    W,
    WorkerHost,
    fail,
)
from specbranch.executors.cpu_affinity import AffinityPlan, CpuAffinity
from specbranch.executors.latency_profile import Devices, ModelLatency, Profile
from specbranch.timing import Span

__all__ = [
    "SEPARATE_DEVICES",
    "SHARED_CPU",
    "Devices",
    "ModelLatency",
    "Profile",
    "VirtualClock",
    "VirtualExecutor",
    "affinity_of",
]

# Plans of virtual machines, which do not depend on the real one. On a shared CPU a model that runs
# alone gets more of it, by which an executor recognises that it runs alone.
SHARED_CPU = AffinityPlan(target=CpuAffinity(1), draft=CpuAffinity(1), alone=CpuAffinity(2))
SEPARATE_DEVICES = AffinityPlan(target=CpuAffinity(1), draft=CpuAffinity(1), alone=CpuAffinity(1))


def affinity_of(profile: Profile | None) -> AffinityPlan:
    """Return the plan of the executors on the machine that a profile describes."""
    shared = profile is not None and profile.target.alone is not None
    return SHARED_CPU if shared else SEPARATE_DEVICES


@dataclass
class VirtualClock:
    """The decoder's time in seconds; it advances when the decoder awaits a request."""

    now: float = 0.0


class VirtualFuture(LazyFuture[R]):
    """Executed lazily, because cancellation is known only when the result is awaited."""

    def __init__(self, executor: VirtualExecutor[W], request: Request[W, R]) -> None:
        super().__init__()
        self._executor: VirtualExecutor[Any] = executor
        self.request: Request[Any, R] = request
        self.latency = executor.latency
        self.submitted = executor.clock.now
        self.stopped_at = float("inf")

    def stop(self) -> None:
        """See `Future.stop`."""
        self.stopped_at = min(self.stopped_at, self._executor.clock.now)

    def wait(self, timeout: float | None) -> None:
        """Run the request in this thread; real time has no meaning here, so no timeout has."""
        self._executor.wait(self)


class VirtualExecutor(BaseExecutor[W]):
    """Runs requests inline, with spans from a profile.

    Args:
        make_worker: called at once.
        name: of the executor.
        latency: of its model.
        clock: shared by the executors of a pair.

    Attributes:
        latency: the one that the next request has, according to the current affinity.
    """

    def __init__(
        self, make_worker: Callable[[], W], name: str, latency: ModelLatency, clock: VirtualClock
    ) -> None:
        super().__init__(name)
        self.clock = clock
        self.latency = latency
        self._host: WorkerHost[W] | None = WorkerHost(name, make_worker)
        self._overlapped, self._alone = latency, latency.alone or latency
        self._free_at = 0.0
        self._lock = threading.RLock()
        self._pending: deque[VirtualFuture[Any]] = deque()

    def _submit(self, request: Request[W, R]) -> Future[R]:
        future = VirtualFuture(self, request)
        self._pending.append(future)
        return future

    def wait(self, future: VirtualFuture[Any]) -> None:
        """Run the requests up to that of `future`, and advance the clock to its end."""
        if self._foreign and not future.done():
            fail(future, self._forked())
            return
        with self._lock:
            while not future.done():
                self._run(self._pending.popleft())
            self.clock.now = max(self.clock.now, future.span.end)

    def set_affinity(self, cpus: CpuAffinity) -> None:
        """See `Executor.set_affinity`."""
        self.latency = self._alone if cpus == SHARED_CPU.alone else self._overlapped

    def now(self) -> float:
        """See `Executor.now`."""
        return self.clock.now

    def close(self) -> None:
        """See `Executor.close`. Runs the requests that were submitted before."""
        self._closed = True
        if not self._foreign:
            with self._lock:
                while self._pending:
                    self._run(self._pending.popleft())
        self._host = None

    def _run(self, future: VirtualFuture[Any]) -> None:
        host = self._host
        assert host is not None
        start = max(future.submitted, self._free_at)

        def end(forwards: tuple[int, ...]) -> float:
            return start + future.latency.call + sum(map(future.latency.seconds, forwards))

        def stopped() -> bool:
            return end(host.forwards) >= future.stopped_at

        reply = host.run(future.request, stopped)
        self._free_at = end(reply.span.forwards)
        span = Span(start, self._free_at, reply.span.forwards)
        replace(reply, span=span).settle(future)
