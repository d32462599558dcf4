"""vLLM's end of the drafter's process: starts it, sends without blocking, receives what is there.

vLLM's workers are daemons, from which `multiprocessing` starts no child; a plain program it can
start. The process ends when the socket closes, so it cannot outlive vLLM.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from specbranch.errors import ExecutorError, InputError
from specbranch.executors.channel import Channel, encode
from specbranch.integrations.vllm.messages import (
    PROTOCOL,
    Failed,
    Message,
    News,
    Ready,
    Reply,
    Start,
    Step,
)
from specbranch.openmp import SPINCOUNT, SPINS

_PROGRAM = (
    "import sys; from specbranch.integrations.vllm.drafter_process import serve; "
    "serve(int(sys.argv[1]))"
)
# Of vLLM's worker: they are meant for the target, and its allocator and OpenMP library.
_MEANT_FOR_THE_TARGET = ("KMP_", "OMP_", "GOMP_", "TORCHINDUCTOR_", "VLLM_")


class Link(Protocol):
    """Messages to and from a drafter."""

    ready: bool

    def send(self, message: Message) -> None:
        """Send a message, now or as soon as there is room; never blocks.

        Raises:
            ExecutorError: nobody will read it.
        """

    def receive(self, seconds: float = 0.0) -> list[News]:
        """What has arrived; waits at most so long for the first message.

        Raises:
            ExecutorError: nothing will arrive any more.
            InputError: the draft cannot be loaded, however often that is tried.
        """

    def close(self) -> None:
        """End the drafter."""


class ProcessLink:
    """A drafter in a process of its own.

    Args:
        start: sent first.
        python: the interpreter; None is this one.
        timeout: seconds without an answer after which the drafter counts as hung.
        startup_timeout: the same until the draft is loaded.
    """

    def __init__(
        self, start: Start, python: str | None, timeout: float, startup_timeout: float
    ) -> None:
        self.ready = False
        self._timeout = timeout
        self._outbox: deque[bytes] = deque()
        self._awaited = 0  # the newest step sent
        self._answered = 0
        self._since = time.monotonic()
        self._deadline = self._since + startup_timeout
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours.detach())
        with theirs:
            try:
                self._process = subprocess.Popen(
                    # -P: a file in the user's folder must not pass for a module.
                    [python or sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what a library prints is no part of the program's output
                    process_group=0,  # an interrupt is meant for vLLM, which closes this
                    pass_fds=[theirs.fileno()],
                    env=drafter_environment(os.environ, own=python is None),
                )
            except OSError as error:
                self._channel.close()
                raise InputError(f"cannot start the drafter's interpreter: {error}") from error
        self.send(start)

    @property
    def pid(self) -> int:
        """Of the drafter's process."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """See `Link.send`."""
        if isinstance(message, Step):
            if self._awaited == self._answered:
                self._since = time.monotonic()
            self._awaited = message.number
        self._outbox.append(encode(message))
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox and self._channel.sends_at_once(self._outbox[0]):
                self._channel.send(self._outbox.popleft())
        except OSError as error:
            raise self._gone(error) from error

    def receive(self, seconds: float = 0.0) -> list[News]:
        """See `Link.receive`."""
        self._flush()
        news: list[News] = []
        waits = seconds > 0
        try:
            while self._channel.poll_awake(seconds) if waits else self._channel.poll():
                news.append(self._note(self._channel.receive()))
                waits = False
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._gone(error) from error
        if not news:
            self._check_time()
        return news

    def _note(self, news: News) -> News:
        if isinstance(news, Failed):
            if news.kind == "input":
                raise InputError(news.why)
            raise ExecutorError("draft", f"failed: {news.why}")
        if isinstance(news, Ready):
            if news.protocol != PROTOCOL:
                raise InputError("the drafter's interpreter has another version of specbranch")
            self.ready = True
        if isinstance(news, Reply):
            self._answered = max(self._answered, news.number)
        self._since = time.monotonic()
        return news

    def _check_time(self) -> None:
        now = time.monotonic()
        if not self.ready:
            if now > self._deadline:
                raise ExecutorError("draft", "was not ready in time and is ended")
        elif self._awaited != self._answered and now - self._since > self._timeout:
            raise ExecutorError("draft", f"did not answer for {self._timeout:g} s and is ended")

    def _gone(self, error: Exception) -> ExecutorError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=0.2)
            if code == -9:
                return ExecutorError("draft", "died: its process was killed (out of memory?)")
            return ExecutorError("draft", f"died: its process ended with exit code {code}")
        return ExecutorError("draft", f"broke its connection ({error or type(error).__name__})")

    def close(self) -> None:
        """See `Link.close`."""
        self._channel.close()
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)


def drafter_environment(environment: Mapping[str, str], own: bool) -> dict[str, str]:
    """The environment of the drafter's process, made from that of vLLM's worker.

    Args:
        environment: of the worker.
        own: whether it is the same interpreter, which finds the same packages.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(_MEANT_FOR_THE_TARGET) and name not in ("LD_PRELOAD", "PYTHONPATH")
    }
    kept.setdefault(SPINCOUNT, SPINS)
    if own:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return kept
