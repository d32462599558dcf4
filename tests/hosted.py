"""The worker behind an inline executor, to look inside."""

from __future__ import annotations

from typing import Any


def hosted(executor: Any) -> Any:
    """The worker itself."""
    return executor._host._worker
