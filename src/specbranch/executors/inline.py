"""The inline executor: calls run where and when they are made, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from specbranch.errors import ExecutorError
from specbranch.executors.base import Call, Host, Worker
from specbranch.executors.cpu_affinity import CpuAffinity


class InlineExecutor:
    """In the caller's own thread: no messages, and no concurrency but with executors elsewhere.

    Args:
        make_worker: called at once.
        name: of the executor.
        share: what its calls get of the machine, until they end; by default what the caller has.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], name: str, share: CpuAffinity | None = None
    ) -> None:
        self.name = name
        self._share = share
        with self._lent():
            self._host: Host | None = Host(name, make_worker)

    def submit(self, method: str, *args: Any) -> Call:
        call = Call()
        if self._host is None:
            call.set_exception(ExecutorError(self.name, "was closed"))
            return call
        with self._lent():
            self._host.run(method, args).settle(call)
        return call

    def set_affinity(self, share: CpuAffinity) -> None:
        """Without effect where the caller's own share counts."""
        if self._share is not None:
            self._share = share

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self._host = None

    def _lent(self) -> AbstractContextManager[None]:
        return nullcontext() if self._share is None else self._share.applied()
