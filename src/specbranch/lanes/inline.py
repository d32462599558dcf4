"""The inline lane: calls run where and when they are made, one after another."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any


class InlineLane:
    """Deterministic, without concurrency: what tests use, and what one device can do best.

    Args:
        worker: the object whose methods are called.
    """

    def __init__(self, worker: object) -> None:
        self._worker = worker

    def submit(self, method: str, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(getattr(self._worker, method)(*args))
        except Exception as error:  # handed to whoever asks for the result, as other lanes do
            future.set_exception(error)
        return future

    def close(self) -> None:
        del self._worker
