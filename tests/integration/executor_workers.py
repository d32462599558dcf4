"""A worker and requests for tests of executors, where another process can import them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import torch

from specbranch.errors import InputError
from specbranch.executors.base import Request, Worker
from specbranch.executors.cpu_affinity import CpuAffinity

CORE = min(os.sched_getaffinity(0))
CPUS = CpuAffinity(1, (CORE,))


class Echo(Worker):
    """Does what a request tells it and returns what became of it."""

    def echo(self, value: object) -> object:
        return value

    def forwards(self, *tokens: int) -> int:
        for count in tokens:
            self.meter(count)
        return len(tokens)

    def count(self, most: int) -> int:
        """Count until stopped; return how far it came."""
        for number in range(most):
            self.meter(1)
            if self.stopped():
                return number
            time.sleep(0.001)
        return most


@dataclass(frozen=True)
class EchoRequest(Request[Echo, object]):
    value: object

    def run(self, worker: Echo) -> object:
        return worker.echo(self.value)


@dataclass(frozen=True)
class ForwardsRequest(Request[Echo, int]):
    tokens: tuple[int, ...]

    def run(self, worker: Echo) -> int:
        return worker.forwards(*self.tokens)


@dataclass(frozen=True)
class CountRequest(Request[Echo, int]):
    most: int

    def run(self, worker: Echo) -> int:
        return worker.count(self.most)


@dataclass(frozen=True)
class WhereRequest(Request[Worker, tuple[int, list[int], int]]):
    """Process id, cores and threads of the worker."""

    def run(self, worker: Worker) -> tuple[int, list[int], int]:
        return os.getpid(), sorted(os.sched_getaffinity(0)), torch.get_num_threads()


@dataclass(frozen=True)
class VariablesRequest(Request[Worker, list[bytes | None]]):
    """Environment variables as a C library sees them."""

    names: tuple[str, ...]

    def run(self, worker: Worker) -> list[bytes | None]:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        return [getenv(name.encode()) for name in self.names]


@dataclass(frozen=True)
class FailRequest(Request[Worker, None]):
    error: Exception

    def run(self, worker: Worker) -> None:
        raise self.error


@dataclass(frozen=True)
class KillRequest(Request[Worker, None]):
    number: int = signal.SIGKILL

    def run(self, worker: Worker) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(60)


@dataclass(frozen=True)
class ExitRequest(Request[Worker, None]):
    code: int

    def run(self, worker: Worker) -> None:
        os._exit(self.code)


@dataclass(frozen=True)
class HangRequest(Request[Worker, None]):
    def run(self, worker: Worker) -> None:
        hang()


@dataclass(frozen=True)
class UnsendableRequest(Request[Worker, Any]):
    def run(self, worker: Worker) -> Any:
        return lambda: None


@dataclass(frozen=True)
class UnsendableErrorRequest(Request[Worker, None]):
    def run(self, worker: Worker) -> None:
        raise TwoArgumentsError("wrong", "number")


class TwoArgumentsError(Exception):
    """Can be pickled, but not be made again from what was pickled."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


def hang() -> Echo:
    while True:
        time.sleep(1)


def make_nothing() -> Echo:
    raise InputError("there is no such worker")
