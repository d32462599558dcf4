"""The inline lane: calls run where and when they are made, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from specbranch.errors import LaneError
from specbranch.lanes.base import Call, Host, Worker
from specbranch.lanes.placement import Share


class InlineLane:
    """In the caller's own thread: no messages, and no concurrency but with lanes elsewhere.

    Args:
        make_worker: called at once.
        name: of the lane.
        share: what its calls get of the machine, until they end; by default what the caller has.
    """

    def __init__(
        self, make_worker: Callable[[], Worker], name: str, share: Share | None = None
    ) -> None:
        self.name = name
        self._share = share
        with self._lent():
            self._host: Host | None = Host(name, make_worker)

    def submit(self, method: str, *args: Any) -> Call:
        call = Call()
        if self._host is None:
            call.set_exception(LaneError(self.name, "was closed"))
            return call
        with self._lent():
            self._host.run(method, args).settle(call)
        return call

    def occupy(self, share: Share) -> None:
        """Without effect where the caller's own share counts."""
        if self._share is not None:
            self._share = share

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self._host = None

    def _lent(self) -> AbstractContextManager[None]:
        return nullcontext() if self._share is None else self._share.lent()
