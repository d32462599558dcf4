"""Warnings wait while text is streamed: none may land in the middle of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class _Held(logging.Handler):
    """Keeps records for later."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def held_back_warnings() -> Iterator[None]:
    """Hold the package's log records back until the block ends."""
    logger, held = logging.getLogger("specbranch"), _Held()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(held)
    try:
        yield
    finally:
        logger.removeHandler(held)
        logger.propagate = propagated
        for record in held.records:
            logger.handle(record)
