"""The executor interface, and what the implementations share."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from specbranch.errors import ExecutorError
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.timing import Span as Span


class Worker:
    """Base of what an executor hosts. The executor sets both hooks and runs one request at a time.

    Attributes:
        meter: to be called with the number of tokens of each forward pass, after it.
        stopped: whether the caller wants the running request to end early.
    """

    meter: Callable[[int], None] = staticmethod(lambda tokens: None)
    stopped: Callable[[], bool] = staticmethod(lambda: False)


W = TypeVar("W", bound=Worker)
R = TypeVar("R")
# A request to any worker is a request to this one, and an executor of this worker is one of any.
W_contra = TypeVar("W_contra", bound=Worker, contravariant=True)
W_co = TypeVar("W_co", bound=Worker, covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Request(ABC, Generic[W_contra, R_co]):
    """A message to a worker; it says by itself which typed method of the worker to call.

    Subclasses are frozen dataclasses at module level, so that they can be sent to another process.
    """

    @abstractmethod
    def run(self, worker: W_contra) -> R_co:
        """Run the request on the worker and return the worker's result."""


@dataclass(frozen=True)
class PingRequest(Request[Worker, None]):
    """An empty request. It measures the latency of a round trip."""

    def run(self, worker: Worker) -> None:
        """Do nothing."""


class Future(concurrent.futures.Future[R], Generic[R]):
    """The future result of a request. `cancel` has no effect: use `stop`.

    Attributes:
        span: when the request ran; set before the future is done.
    """

    span: Span

    def __init__(self) -> None:
        super().__init__()
        # A cancelled future could not take the reply that arrives later.
        self.set_running_or_notify_cancel()

    def stop(self) -> None:
        """Ask the worker to end the request early and return what it has.

        Without effect on requests that are done, and on workers that do not poll `stopped`.
        """


class LazyFuture(Future[R]):
    """A future that progresses only while a thread waits in `result` or `exception`.

    `done` and callbacks see a result only after some thread of the program has waited for it.
    """

    @abstractmethod
    def wait(self, timeout: float | None) -> None:
        """Block until the future is done, or until `timeout` seconds have passed."""

    def result(self, timeout: float | None = None) -> R:
        """Return the worker's result, or raise its error.

        Raises:
            TimeoutError: no result after `timeout` seconds.
        """
        self.wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error that the request raised, or None.

        Raises:
            TimeoutError: no result after `timeout` seconds.
        """
        self.wait(timeout)
        return super().exception(0)


class Executor(Protocol[W_co]):
    """Hosts one worker and runs requests on it in the order of submission.

    Attributes:
        name: names the executor in error messages.
    """

    name: str

    def submit(self, request: Request[W_co, R]) -> Future[R]:
        """Run a request on the worker.

        Returns:
            A future with the worker's result or the error it raised. The error is an
            `ExecutorError` if the executor itself failed, was closed, or belongs to the process
            that this one was forked from. If the worker could not be made, each request gets the
            reason as its error.
        """

    def set_affinity(self, cpus: CpuAffinity) -> None:
        """Run later requests with these threads and cores."""

    def now(self) -> float:
        """Return the time in seconds on the clock of this executor's spans."""

    def close(self) -> None:
        """Release the worker. Unfinished requests end or fail first; closing twice is allowed."""


class BaseExecutor(ABC, Generic[W]):
    """Checks that all executors make before they accept a request.

    An executor is of use only in the process that made it: the threads that OpenMP and the
    executor itself started, and the CUDA context, do not survive a fork.

    Args:
        name: of the executor.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._closed = False
        self._owner = os.getpid()

    def submit(self, request: Request[W, R]) -> Future[R]:
        """See `Executor.submit`."""
        if refusal := self._refusal():
            return failed(refusal)
        return self._submit(request)

    @abstractmethod
    def _submit(self, request: Request[W, R]) -> Future[R]:
        """Submit to a worker that accepts requests."""

    @property
    def _foreign(self) -> bool:
        """Whether this is a copy of the executor in a forked process."""
        return os.getpid() != self._owner

    def _forked(self) -> ExecutorError:
        return ExecutorError(
            self.name, "belongs to another process: load the models after the fork"
        )

    def _refusal(self) -> ExecutorError | None:
        """Why no request is accepted, if so."""
        if self._foreign:
            return self._forked()
        return ExecutorError(self.name, "was closed") if self._closed else None


def fail(future: Future[R], error: Exception) -> None:
    """Resolve a future of a request that did not run."""
    now = time.perf_counter()
    Reply[R](Span(now, now), error=error).settle(future)


def failed(error: Exception) -> Future[R]:
    """Return a future of a request that was not accepted."""
    future: Future[R] = Future()
    fail(future, error)
    return future


@dataclass(frozen=True)
class Reply(Generic[R]):
    """The outcome of a request.

    Attributes:
        span: when it ran.
        result: what the worker returned; None if there is an error.
        error: what the worker raised, if it did.
    """

    span: Span
    result: R | None = None
    error: BaseException | None = None

    def settle(self, future: Future[R]) -> None:
        """Resolve the future with this outcome."""
        future.span = self.span
        if self.error is not None:
            future.set_exception(self.error)
        else:
            # None is also a result: only the request's own type says whether R allows it.
            future.set_result(self.result)  # type: ignore[arg-type]


class WorkerHost(Generic[W]):
    """Makes a worker and runs requests on it; records when each ran and its forward passes.

    If the worker cannot be made, each request is answered with the reason.

    Args:
        name: of the executor.
        make_worker: called at once.
    """

    def __init__(self, name: str, make_worker: Callable[[], W]) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._forwards: list[int] = []
        self._worker: W | None = None
        self._failure: Exception | None = None
        try:
            self._worker = make_worker()
            self._worker.meter = self._forwards.append
        except Exception as error:
            self._failure = out_of_memory(name, error) or error

    @property
    def forwards(self) -> tuple[int, ...]:
        """Number of tokens of each forward pass of the running request so far."""
        return tuple(self._forwards)

    def run(self, request: Request[W, R], stopped: Callable[[], bool] = lambda: False) -> Reply[R]:
        """Run a request; what it raises is part of the reply. Other threads wait meanwhile."""
        with self._lock:
            self._forwards.clear()
            result, error = None, self._failure
            start = time.perf_counter()
            if self._worker is not None:
                self._worker.stopped = stopped
                try:
                    result = request.run(self._worker)
                except Exception as raised:
                    error = out_of_memory(self.name, raised) or raised
            return Reply(Span(start, time.perf_counter(), self.forwards), result, error)


def out_of_memory(name: str, error: Exception) -> ExecutorError | None:
    """Return an `ExecutorError` if the error says that memory ran out, in whichever library."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    # The CPU's allocator raises a plain RuntimeError.
    if isinstance(error, kinds) or "can't allocate memory" in str(error):
        return ExecutorError(name, "ran out of memory")
    return None
