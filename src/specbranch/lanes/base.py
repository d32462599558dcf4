"""What every lane can do."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol


class Lane(Protocol):
    """Hosts one worker; calls are answered in the order they were made."""

    def submit(self, method: str, *args: Any) -> Future[Any]:
        """Call the worker's `method`; the future holds its result or the error it raised."""

    def close(self) -> None:
        """Release the worker. Calls still under way end first."""
