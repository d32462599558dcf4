"""The inline lane: calls run where and when they are made, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from specbranch.lanes.base import Call, Host, Worker
from specbranch.lanes.placement import Share


class InlineLane:
    """Deterministic, without concurrency: what tests use, and what one device can do best.

    Args:
        make_worker: called at once.
        name: of the lane.
    """

    def __init__(self, make_worker: Callable[[], Worker], name: str) -> None:
        self.name = name
        self._host = Host(name, make_worker)

    def submit(self, method: str, *args: Any) -> Call:
        call = Call()
        self._host.run(method, args).settle(call)
        return call

    def occupy(self, share: Share) -> None:
        """Nothing to do: an inline worker has whatever its caller has."""

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        del self._host
