"""What every executor can do, and what the executors share."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from specbranch.errors import ExecutorError
from specbranch.executors.cpu_affinity import CpuAffinity


@dataclass(frozen=True)
class Span:
    """When a call ran, on the executor's clock.

    Attributes:
        start, end: seconds; executors of one machine share a clock.
        forwards: tokens of each forward of the model that the call made, in order.
    """

    start: float
    end: float
    forwards: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Call(Future[Any]):
    """A call under way: a future, with the time it took once it is done."""

    span: Span

    def stop(self) -> None:
        """Ask the worker to end this call early, with what it has; without effect once it has."""


class Waiter(Protocol):
    """A executor whose calls end only when somebody waits for them."""

    def wait(self, call: Any) -> None:
        """Do what it takes until the call is done."""


class AwaitedCall(Call):
    """A call of such a executor."""

    def __init__(self, executor: Waiter) -> None:
        super().__init__()
        self._waiter = executor

    def result(self, timeout: float | None = None) -> Any:
        self._waiter.wait(self)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._waiter.wait(self)
        return super().exception(timeout)


class Worker:
    """What a executor hosts. The executor sets the two hooks, and makes one call at a time.

    Attributes:
        meter: told how many tokens each forward has, after it.
        stopped: whether the caller wants the running call to end early.
    """

    meter: Callable[[int], None] = staticmethod(lambda tokens: None)
    stopped: Callable[[], bool] = staticmethod(lambda: False)

    def ping(self) -> None:
        """Do nothing: what an empty round trip takes."""


class Executor(Protocol):
    """Hosts one worker; calls are answered in the order they were made.

    Attributes:
        name: whom error messages speak of.
    """

    name: str

    def submit(self, method: str, *args: Any) -> Call:
        """Call the worker's `method`; the future holds its result or the error it raised.

        That error is a `ExecutorError` if the executor itself failed. A process that is gone
        fails every
        later call, too.
        """

    def set_affinity(self, share: CpuAffinity) -> None:
        """Let the worker have this share of the machine, from its next call on."""

    def now(self) -> float:
        """Seconds on the clock that the spans of this executor are measured by."""

    def close(self) -> None:
        """Release the worker. Calls still under way end first."""


@dataclass(frozen=True)
class Reply:
    """How a call ended; exactly one of result and error counts."""

    span: Span
    result: Any = None
    error: BaseException | None = None

    def settle(self, call: Call) -> None:
        """Hand the reply to whoever waits for the call."""
        call.span = self.span
        if self.error is not None:
            call.set_exception(self.error)
        else:
            call.set_result(self.result)


class Host:
    """Makes a worker and runs its calls; takes down when each ran and which forwards it made.

    If the worker cannot be made, every call is answered with the reason.

    Args:
        name: of the executor.
        make_worker: called at once.
    """

    def __init__(self, name: str, make_worker: Callable[[], Worker]) -> None:
        self.name = name
        self._forwards: list[int] = []
        self._worker: Worker | None = None
        self._failure: Exception | None = None
        try:
            self._worker = make_worker()
            self._worker.meter = self._forwards.append
        except Exception as error:
            self._failure = out_of_memory(name, error) or error

    @property
    def forwards(self) -> tuple[int, ...]:
        """Tokens of each forward of the running call so far."""
        return tuple(self._forwards)

    def run(
        self, method: str, args: tuple[Any, ...], stopped: Callable[[], bool] = lambda: False
    ) -> Reply:
        """Make a call; what it raises is part of the reply."""
        self._forwards.clear()
        result, error = None, self._failure
        start = time.perf_counter()
        if self._worker is not None:
            self._worker.stopped = stopped
            try:
                result = getattr(self._worker, method)(*args)
            except Exception as raised:
                error = out_of_memory(self.name, raised) or raised
        span = Span(start, time.perf_counter(), self.forwards)
        return Reply(span, result, error)


def out_of_memory(name: str, error: Exception) -> ExecutorError | None:
    """A executor that ran out of memory has failed as a executor, whichever library noticed it."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    # The CPU's allocator raises a plain RuntimeError.
    if isinstance(error, kinds) or "can't allocate memory" in str(error):
        return ExecutorError(name, "ran out of memory")
    return None
