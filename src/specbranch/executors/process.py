"""The process executor: a process of its own, on its own cores or its own GPU.

The worker's process is a plain Python interpreter that gets everything over one socket: no fork of
a program that may hold locks or a GPU, no import of the user's script, no shared memory. It ends
when the socket closes, so it cannot outlive the program that started it.
"""

from __future__ import annotations

import itertools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from specbranch.errors import ExecutorError
from specbranch.executors.base import AwaitedCall, Call, Host, Reply, Worker
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.openmp import SPINNING

AWAKE = 0.002  # seconds; a draft's last step and a short draft take less
TIMEOUT = 600.0  # seconds; reading a long prompt on a slow CPU takes minutes


def bound(places: Sequence[int]) -> dict[str, str]:
    """Environment in which each computing thread stays on a core of its own.

    Left to the scheduler, threads that sleep between forwards often wake up on the same core.
    """
    if not places:
        return {}
    return {"OMP_PROC_BIND": "true", "OMP_PLACES": ",".join(f"{{{core}}}" for core in places)}


@dataclass(frozen=True)
class Making:
    """The first message to the process: what to host."""

    make_worker: Callable[[], Worker]
    name: str
    share: CpuAffinity
    bound: bool


@dataclass(frozen=True)
class Asking:
    """A call, to be answered by its number and a `Reply`."""

    number: int
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Stopping:
    """The call of that number should end early."""

    number: int


class Channel:
    """Sends and receives Python objects over a socket."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def send(self, message: object) -> None:
        self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        return pickle.loads(self._connection.recv_bytes())

    def waiting(self, seconds: float | None = 0.0) -> bool:
        """Whether a message, or the end of the channel, comes within that time; None waits."""
        return bool(self._poll.poll(None if seconds is None else seconds * 1000))

    def expected(self, seconds: float | None) -> bool:
        """As `waiting`, and awake at first: to fall asleep and wake up is a part of a round."""
        until = time.perf_counter() + AWAKE
        while time.perf_counter() < until:
            if self.waiting():
                return True
        return self.waiting(seconds)

    def close(self) -> None:
        self._connection.close()


class ProcessCall(AwaitedCall):
    """A call whose reply is read from the socket by whoever waits for it."""

    def __init__(self, executor: ProcessExecutor, number: int) -> None:
        super().__init__(executor)
        self._executor = executor
        self.number = number

    def stop(self) -> None:
        if not self.done():
            self._executor.stop(self.number)


class ProcessExecutor:
    """A worker in a process of its own; one message each way a call. For one thread.

    Args:
        make_worker: called in that process; anything that `pickle` can send by name.
        name: of the executor.
        share: cores and threads of that process.
        timeout: seconds after which a call that got no answer is given up, and the process ended;
            making the worker may take longer.
        places: the core of each of its computing threads, the first ones those of its share; by
            default the threads of a share are anywhere on its cores.
    """

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        name: str,
        share: CpuAffinity,
        timeout: float = TIMEOUT,
        places: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._timeout = timeout
        self._calls: dict[int, ProcessCall] = {}
        self._numbers = itertools.count()
        self._made = False
        self._failure: ExecutorError | None = None
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file in the user's folder must not pass for a module.
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is no part of the program's output
                process_group=0,  # an interrupt is meant for the program, which closes it
                pass_fds=[theirs.fileno()],
                # A binding of the whole program's would put both executors on the same cores.
                env=SPINNING
                | os.environ
                | bound(places)
                | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._send(Making(make_worker, name, share, bool(places)))

    def submit(self, method: str, *args: Any) -> Call:
        call = ProcessCall(self, next(self._numbers))
        self._calls[call.number] = call
        self._send(Asking(call.number, method, args))
        return call

    def set_affinity(self, share: CpuAffinity) -> None:
        self._send(share)

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        if self._failure is None:
            self._fail("was closed")
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def stop(self, number: int) -> None:
        """Tell the process that the reply to a call is wanted now."""
        self._send(Stopping(number))

    def wait(self, call: ProcessCall) -> None:
        """Read replies until that of `call` is among them."""
        while not call.done():
            self._receive()

    def _send(self, message: object) -> None:
        if self._failure is not None:
            self._drop_calls()
            return
        try:
            self._channel.send(message)
        except OSError as error:
            self._died(error)

    def _receive(self) -> None:
        # An interrupt may come while this waits; the answer is then read by the next call.
        if not self._channel.expected(self._timeout if self._made else None):
            self._process.kill()
            self._fail(f"did not answer for {self._timeout:g} s and was ended")
            return
        try:
            number, reply = self._channel.receive()
        except (EOFError, OSError) as error:
            self._died(error)
        except BaseException:  # an interrupt: the rest of the message would be taken for the next
            self._fail("was interrupted in the middle of an answer")
            raise
        else:
            self._made = True
            # By its number: an interrupt may have come before an earlier call was sent.
            reply.settle(self._calls.pop(number))

    def _died(self, error: Exception) -> None:
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
        self._failure = ExecutorError(self.name, how)
        self._channel.close()
        self._drop_calls()

    def _drop_calls(self) -> None:
        while self._calls:
            self._calls.popitem()[1].set_exception(self._failure)


_PROGRAM = "import sys; from specbranch.executors.process import serve; serve(int(sys.argv[1]))"


def serve(descriptor: int) -> None:
    """The executor's process: make the worker and then its calls, until the other end closes.

    If the worker cannot be made, every call is answered with the reason.
    """
    channel = Channel(descriptor)
    try:
        _Server(channel).run()
    except (EOFError, OSError):  # the program closed the executor, or is gone
        os._exit(0)  # at once: there is nothing to put in order


class _Server:
    """The other end of a `ProcessExecutor`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[Asking | Stopping | CpuAffinity] = deque()

    def run(self) -> None:
        making: Making = self._channel.receive()
        making.share.take(making.bound)
        host = Host(making.name, making.make_worker)
        while True:
            message = self._waiting.popleft() if self._waiting else self._channel.receive()
            if isinstance(message, CpuAffinity):
                message.take(making.bound)
            elif isinstance(message, Asking):
                stopped = partial(self._stopped, Stopping(message.number))
                reply = host.run(message.method, message.args, stopped)
                self._reply(host.name, message.number, reply)
            # else it is a stop that came after the end of its call

    def _stopped(self, asked: Stopping) -> bool:
        while self._channel.waiting():
            self._waiting.append(self._channel.receive())
        return asked in self._waiting

    def _reply(self, name: str, number: int, reply: Reply) -> None:
        try:
            self._channel.send((number, reply))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            failure = ExecutorError(name, f"cannot send its answer: {error}")
            self._channel.send((number, Reply(reply.span, error=failure)))
