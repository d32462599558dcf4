"""The inline executor: requests run in the caller's thread, at submission."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from specbranch.executors.base import BaseExecutor, Future, R, Request, W, WorkerHost
from specbranch.executors.cpu_affinity import CpuAffinity


class InlineExecutor(BaseExecutor[W]):
    """Runs requests in the caller's thread, so they overlap only with those of other executors.

    Args:
        make_worker: called at once.
        name: of the executor.
        cpus: applied during each request and undone after it; by default requests run with what
            the calling thread has.
    """

    def __init__(
        self, make_worker: Callable[[], W], name: str, cpus: CpuAffinity | None = None
    ) -> None:
        super().__init__(name)
        self._cpus = cpus
        with self._applied():
            self._host: WorkerHost[W] | None = WorkerHost(name, make_worker)

    def _submit(self, request: Request[W, R]) -> Future[R]:
        assert self._host is not None
        future: Future[R] = Future()
        with self._applied():
            reply = self._host.run(request)
        reply.settle(future)
        return future

    def set_affinity(self, cpus: CpuAffinity) -> None:
        """See `Executor.set_affinity`. Without effect if the executor was made without `cpus`."""
        if self._cpus is not None:
            self._cpus = cpus

    def now(self) -> float:
        """See `Executor.now`."""
        return time.perf_counter()

    def close(self) -> None:
        """See `Executor.close`."""
        self._closed = True
        self._host = None

    def _applied(self) -> AbstractContextManager[None]:
        return nullcontext() if self._cpus is None else self._cpus.applied()
