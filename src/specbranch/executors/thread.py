"""The thread executor: a thread and, on a GPU, a CUDA stream of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from specbranch.errors import ExecutorError
from specbranch.executors.base import BaseExecutor, Future, R, Request, W, WorkerHost, failed
from specbranch.executors.cpu_affinity import CpuAffinity


class StoppableFuture(Future[R]):
    """A future of a request that another thread runs and that this one can stop."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """See `Future.stop`."""
        self._stopped.set()

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()


class ThreadExecutor(BaseExecutor[W]):
    """Serves one GPU that both models share: their kernels run concurrently on two streams.

    Args:
        make_worker: called in the executor's thread.
        name: of the executor.
        cpus: only the number of threads is used: cores are set for processes.
        device: the device of the worker's model.
    """

    def __init__(
        self, make_worker: Callable[[], W], name: str, cpus: CpuAffinity, device: torch.device
    ) -> None:
        super().__init__(name)
        self._host: WorkerHost[W] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{name} executor")
        self._pool.submit(self._start, make_worker, cpus, device)

    def _start(self, make_worker: Callable[[], W], cpus: CpuAffinity, device: torch.device) -> None:
        torch.set_num_threads(cpus.threads)

        def make() -> W:
            worker = make_worker()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.set_device(device)
                torch.cuda.set_stream(torch.cuda.Stream(device))
            return worker

        # The host answers each request with the error if this fails.
        self._host = WorkerHost(self.name, make)

    def _submit(self, request: Request[W, R]) -> Future[R]:
        future: StoppableFuture[R] = StoppableFuture()
        try:
            self._pool.submit(self._run, future, request)
        except RuntimeError:  # another thread closed the executor after the check
            return failed(ExecutorError(self.name, "was closed"))
        return future

    def _run(self, future: StoppableFuture[R], request: Request[W, R]) -> None:
        assert self._host is not None
        self._host.run(request, future.stopped).settle(future)

    def set_affinity(self, cpus: CpuAffinity) -> None:
        """See `Executor.set_affinity`."""
        if self._refusal() is None:
            self._pool.submit(torch.set_num_threads, cpus.threads)

    def now(self) -> float:
        """See `Executor.now`."""
        return time.perf_counter()

    def close(self) -> None:
        """See `Executor.close`. Waits for the requests that were submitted before."""
        self._closed = True
        if not self._foreign:  # a forked process has no copy of the thread to wait for
            self._pool.shutdown()
        self._host = None
