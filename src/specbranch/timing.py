"""Time spans of requests, which metrics, policies and timelines share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The period in which an executor ran a request.

    Attributes:
        start, end: seconds on the executor's clock. Executors of one machine share a clock;
            across machines only `seconds` can be compared.
        forwards: number of tokens of each forward pass that the request made, in order.
    """

    start: float
    end: float
    forwards: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration of the request."""
        return self.end - self.start
