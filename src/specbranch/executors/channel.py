"""The channel between a process executor and its process, and the messages on it."""

from __future__ import annotations

import os
import pickle
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from specbranch.executors.base import Request, Worker
from specbranch.executors.cpu_affinity import CpuAffinity

AWAKE = 0.002  # seconds; the last step of a draft and a short chain take less
SMALL = 32_768  # bytes; fits into the socket's buffer if poll says that it is writable
STARTED = 0  # number of the reply that says that the worker was made


@dataclass(frozen=True)
class StartMessage:
    """The first message to the process.

    Attributes:
        bound: whether OpenMP binds each computing thread to a core of its own.
    """

    make_worker: Callable[[], Worker]
    name: str
    cpus: CpuAffinity
    bound: bool


@dataclass(frozen=True)
class RequestMessage:
    """A request. It is answered by a pair of its number and a `Reply`."""

    number: int
    request: Request[Any, Any]


@dataclass(frozen=True)
class StopMessage:
    """The request of that number should end early."""

    number: int


class Channel:
    """Sends and receives Python objects over a connected socket.

    Args:
        descriptor: of the socket; the channel owns it.
    """

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(descriptor, select.POLLIN)
        self._writable.register(descriptor, select.POLLOUT)

    def send(self, data: bytes) -> None:
        """Send a pickled message; blocks while the socket's buffer is full."""
        self._connection.send_bytes(data)

    def receive(self) -> Any:
        """Receive the next message.

        Raises:
            EOFError, OSError: the other end is closed.
        """
        return pickle.loads(self._connection.recv_bytes())

    def sends_at_once(self, data: bytes) -> bool:
        """Whether `send` would not block."""
        return len(data) <= SMALL and bool(self._writable.poll(0))

    def poll(self, seconds: float = 0.0) -> bool:
        """Wait up to that time; return whether a message, or the end of the channel, is there."""
        return bool(self._readable.poll(seconds * 1000))

    def poll_awake(self, seconds: float) -> bool:
        """Poll without sleep at first, because waking up takes a good part of a round trip."""
        until = time.perf_counter() + min(seconds, AWAKE)
        while True:
            if self.poll():
                return True
            left = until - time.perf_counter()
            if left <= 0:
                return seconds > AWAKE and self.poll(seconds - AWAKE)

    def shut_down(self) -> None:
        """End the connection for both ends and for all threads that wait on it."""
        with socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this process's descriptor; a copy of it in another process stays connected."""
        self._connection.close()


def encode(message: object) -> bytes:
    """Pickle a message.

    Raises:
        PicklingError, TypeError, AttributeError: it cannot be pickled.
    """
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
