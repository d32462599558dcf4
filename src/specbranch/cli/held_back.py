"""Warnings are held back while text is streamed, so that none lands in the middle of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Holder(logging.Filter):
    """Withholds the records of a handler."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self.handler = handler
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.records.append(record)
        return False

    def release(self) -> None:
        self.handler.removeFilter(self)
        for record in self.records:
            self.handler.handle(record)


def _handlers() -> set[logging.Handler]:
    """Every handler there is; `lastResort` prints warnings where there is none."""
    root = logging.getLogger()
    loggers = [root, *root.manager.loggerDict.values()]
    found = {handler for each in loggers for handler in getattr(each, "handlers", ())}
    return found | ({logging.lastResort} if logging.lastResort else set())


@contextmanager
def hold_back_warnings() -> Iterator[None]:
    """Hold log records and Python's warnings back until the block ends."""
    holders = [_Holder(handler) for handler in _handlers()]
    for holder in holders:
        holder.handler.addFilter(holder)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for holder in holders:
            holder.release()
        for each in caught:
            warnings.showwarning(
                each.message, each.category, each.filename, each.lineno, each.file, each.line
            )
