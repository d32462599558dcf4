"""The main program of a process executor's process."""

from __future__ import annotations

import os
import pickle
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from specbranch.errors import ExecutorError
from specbranch.executors.base import Reply, Worker, WorkerHost
from specbranch.executors.channel import (
    STARTED,
    Channel,
    RequestMessage,
    StartMessage,
    StopMessage,
    encode,
)
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.openmp import forget_binding
from specbranch.timing import Span


def serve(descriptor: int) -> None:
    """Make the worker and run its requests, until the other end of the socket is closed.

    Args:
        descriptor: of the socket.
    """
    forget_binding()
    try:
        _Server(Channel(descriptor)).run()
    except (EOFError, OSError):  # the program closed the executor or has ended
        os._exit(0)  # at once: nothing needs to be cleaned up


class _Server:
    """The other end of a `ProcessExecutor`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._received: deque[RequestMessage | StopMessage | CpuAffinity] = deque()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="sender")
        self._sent: Future[None] | None = None

    def run(self) -> None:
        start: StartMessage = self._channel.receive()
        start.cpus.apply(start.bound)
        host: WorkerHost[Worker] = WorkerHost(start.name, start.make_worker)
        now = time.perf_counter()
        self._reply(host.name, STARTED, Reply[None](Span(now, now)))
        while True:
            message = self._received.popleft() if self._received else self._channel.receive()
            if isinstance(message, CpuAffinity):
                message.apply(start.bound)
            elif isinstance(message, RequestMessage):
                stopped = partial(self._stopped, StopMessage(message.number))
                reply = host.run(message.request, stopped)
                self._reply(host.name, message.number, reply)
            # A stop that arrives here came after the end of its request.

    def _stopped(self, awaited: StopMessage) -> bool:
        while self._channel.poll():
            self._received.append(self._channel.receive())
        return awaited in self._received

    def _reply(self, name: str, number: int, reply: Reply[Any]) -> None:
        try:
            data = encode((number, reply))
            if reply.error is not None:
                pickle.loads(data)  # exceptions with arguments of their own often fail here
        except Exception as error:
            cause = error if reply.error is None else repr(reply.error)
            failure = ExecutorError(name, f"cannot send its answer: {cause}")
            data = encode((number, Reply[None](reply.span, error=failure)))
        if self._sent is not None and not self._sent.done():
            self._sent = self._sender.submit(self._channel.send, data)
        elif self._channel.sends_at_once(data):
            self._channel.send(data)
        else:
            # The other end may be sending a large request at this moment, without receiving. So
            # this thread must go on to receive.
            self._sent = self._sender.submit(self._channel.send, data)
