"""The process executor: a process of its own, on its own cores or its own GPU.

The worker's process is a plain Python interpreter that receives everything over one socket. There
is no fork of a program that may hold locks or a GPU, no import of the user's script and no shared
memory. The process ends when the socket closes, so it cannot outlive the program that started it.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from specbranch.errors import ExecutorError
from specbranch.executors.base import BaseExecutor, Future, LazyFuture, R, Request, W, fail
from specbranch.executors.channel import (
    STARTED,
    Channel,
    RequestMessage,
    StartMessage,
    StopMessage,
    encode,
)
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.openmp import child_environment

TIMEOUT = 600.0  # seconds; reading a long prompt on a slow CPU takes minutes
STARTUP_TIMEOUT = 1800.0  # seconds; so does reading a large model from a slow disk

_PROGRAM = (
    "import sys; from specbranch.executors.process_server import serve; serve(int(sys.argv[1]))"
)


class ProcessFuture(LazyFuture[R]):
    """A future whose reply is read from the socket by a thread that waits for a reply."""

    def __init__(self, executor: ProcessExecutor[Any], number: int) -> None:
        super().__init__()
        self._executor = executor
        self.number = number

    def stop(self) -> None:
        """See `Future.stop`."""
        if not self.done():
            self._executor.stop(self.number)

    def wait(self, timeout: float | None) -> None:
        """See `LazyFuture.wait`."""
        self._executor.wait(self, timeout)


class ProcessExecutor(BaseExecutor[W]):
    """Hosts a worker in a process of its own; each request takes one message in each direction.

    Several threads may use it at once. Of those that wait, one receives for all of them.

    Args:
        make_worker: called in that process; `pickle` must be able to send it.
        name: of the executor.
        cpus: threads and cores of that process.
        timeout: seconds without a reply after which the process is ended.
        places: the core of each of its computing threads in order, the first ones those of `cpus`.
            By default the threads may run anywhere on the cores of `cpus`.
        startup_timeout: seconds after which the process is ended if the worker is not yet made.
    """

    def __init__(
        self,
        make_worker: Callable[[], W],
        name: str,
        cpus: CpuAffinity,
        timeout: float = TIMEOUT,
        places: Sequence[int] = (),
        startup_timeout: float = STARTUP_TIMEOUT,
    ) -> None:
        super().__init__(name)
        self._timeout = timeout
        self._startup_timeout = startup_timeout
        self._deadline = self.now() + startup_timeout
        self._started = False
        self._futures: dict[int, ProcessFuture[Any]] = {}
        self._numbers = itertools.count(STARTED + 1)
        self._failure: ExecutorError | None = None
        self._sending = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._receiver: int | None = None  # the thread that receives, guarded by `_turn`
        start = encode(StartMessage(make_worker, name, cpus, bool(places)))
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file in the user's folder must not pass for a module.
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is no part of the program's output
                process_group=0,  # an interrupt is meant for the program, which closes this
                pass_fds=[theirs.fileno()],
                env=child_environment(places)
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        _executors.add(self)
        self._send(start)

    def _submit(self, request: Request[W, R]) -> Future[R]:
        future: ProcessFuture[R] = ProcessFuture(self, next(self._numbers))
        data = encode(RequestMessage(future.number, request))
        if self._started and not self._futures:
            self._deadline = self.now() + self._timeout
        self._futures[future.number] = future
        self._send(data)
        return future

    def set_affinity(self, cpus: CpuAffinity) -> None:
        """See `Executor.set_affinity`."""
        if self._refusal() is None:
            self._send(encode(cpus))

    def now(self) -> float:
        """See `Executor.now`."""
        return time.perf_counter()

    def close(self) -> None:
        """See `Executor.close`. Unfinished requests fail; the process ends after a running one."""
        self._closed = True
        if self._foreign:
            self._channel.close()
            return
        self._fail("was closed")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._sending, self._turn:  # no thread may use the descriptor when it is closed
            while self._receiver not in (None, threading.get_ident()):
                self._turn.wait()
            self._channel.close()

    def stop(self, number: int) -> None:
        """Tell the process that the reply to a request is wanted now."""
        if self._refusal() is None:
            self._send(encode(StopMessage(number)))

    def wait(self, future: ProcessFuture[Any], timeout: float | None) -> None:
        """Receive replies, or let another thread receive them, until that of `future` is there."""
        until = float("inf") if timeout is None else self.now() + timeout
        while not future.done():
            if self._foreign:
                fail(future, self._forked())
                return
            self._take_turn(future, until)
            if self.now() >= until:
                return

    def _take_turn(self, future: ProcessFuture[Any], until: float) -> None:
        this_thread = threading.get_ident()
        try:  # an interrupt at any point of this must leave the turn to another thread
            with self._turn:
                if self._receiver not in (None, this_thread):
                    # Woken up when the receiver has a reply; it may be that of `future`.
                    self._turn.wait(None if until == float("inf") else until - self.now())
                    return
                if future.done():
                    return
                self._receiver = this_thread
            self._receive(until)
        finally:
            with self._turn:
                if self._receiver == this_thread:
                    self._receiver = None
                    self._turn.notify_all()

    def _receive(self, until: float) -> None:
        # If an interrupt comes while this waits, the reply is read later and settled by its number.
        if not self._channel.poll_awake(max(0.0, min(until, self._deadline) - self.now())):
            if self.now() >= self._deadline:
                self._give_up()
            return
        try:
            number, reply = self._channel.receive()
        except (EOFError, OSError) as error:
            self._died(error)
            return
        except BaseException:  # an interrupt: the rest of the message would be read as the next one
            self._fail("was interrupted in the middle of an answer")
            raise
        self._deadline = self.now() + self._timeout
        if number == STARTED:
            self._started = True
        elif (future := self._futures.pop(number, None)) is not None:
            reply.settle(future)

    def _send(self, data: bytes) -> None:
        with self._sending:
            if self._failure is None:
                try:
                    self._channel.send(data)
                except OSError as error:
                    self._died(error)
        if self._failure is not None:
            self._drop_futures(self._failure)

    def _give_up(self) -> None:
        self._process.kill()
        if self._started:
            self._fail(f"did not answer for {self._timeout:g} s and was ended")
        else:
            self._fail(f"was not ready after {self._startup_timeout:g} s and was ended")

    def _died(self, error: Exception) -> None:
        if self._failure is not None:
            return
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._fail(f"broke its connection ({error})")
            return
        if code == -signal.SIGKILL:
            self._fail("died: its process was killed (out of memory?)")
        elif code < 0:
            self._fail(f"died: its process got {signal.Signals(-code).name}")
        else:
            self._fail(f"died: its process ended with exit code {code}")

    def _fail(self, how: str) -> None:
        if self._failure is None:
            self._failure = ExecutorError(self.name, how)
            with suppress(OSError):  # the other end may have closed it
                self._channel.shut_down()
        self._drop_futures(self._failure)
        with self._turn:
            self._turn.notify_all()

    def _drop_futures(self, failure: ExecutorError) -> None:
        # A future is entered before the failure is looked up, so that none is missed.
        with suppress(KeyError):
            while True:
                fail(self._futures.popitem()[1], failure)

    def disconnect(self) -> None:
        """Close the descriptor that a forked process has inherited.

        Otherwise the worker's process would outlive its program, until the fork ends, too.
        """
        self._channel.close()


_executors: weakref.WeakSet[ProcessExecutor[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for executor in list(_executors):
        executor.disconnect()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
