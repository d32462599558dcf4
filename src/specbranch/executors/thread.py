"""The thread executor: a thread, and on a GPU a CUDA stream, of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from specbranch.executors.base import Call, Host, Worker
from specbranch.executors.cpu_affinity import CpuAffinity


class StoppableCall(Call):
    """A call that another thread can ask to end."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def stopped(self) -> bool:
        return self._stopped.is_set()


class ThreadExecutor:
    """For one GPU that both models share: their kernels run side by side on two streams.

    Args:
        make_worker: called in the executor's thread.
        name: of the executor.
        share: only its number of threads counts: cores belong to processes.
        device: where the worker's model is.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], name: str, share: CpuAffinity, device: torch.device
    ) -> None:
        self.name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{name} executor")
        self._pool.submit(self._start, make_worker, share, device)

    def _start(
        self, make_worker: Callable[[], Worker], share: CpuAffinity, device: torch.device
    ) -> None:
        torch.set_num_threads(share.threads)

        def make() -> Worker:
            worker = make_worker()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.set_device(device)
                torch.cuda.set_stream(torch.cuda.Stream(device))
            return worker

        self._host = Host(self.name, make)  # what fails here is the answer to every call

    def submit(self, method: str, *args: Any) -> Call:
        call = StoppableCall()
        self._pool.submit(self._run, call, method, args)
        return call

    def _run(self, call: StoppableCall, method: str, args: tuple[Any, ...]) -> None:
        self._host.run(method, args, call.stopped).settle(call)

    def set_affinity(self, share: CpuAffinity) -> None:
        self._pool.submit(torch.set_num_threads, share.threads)

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self._pool.shutdown()
        del self._host
