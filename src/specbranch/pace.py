"""How fast the two lanes are, by what they took lately."""

from __future__ import annotations

from collections import deque
from statistics import median

from specbranch.lanes.base import Span

REMEMBERED = 32  # calls; a few seconds at most, so that a machine that slows down is noticed


class Pace:
    """Running medians of a verification and of a draft step."""

    def __init__(self) -> None:
        self._verifications: deque[float] = deque(maxlen=REMEMBERED)
        self._steps: deque[float] = deque(maxlen=REMEMBERED)

    def observe(self, verification: Span, burst: Span | None) -> None:
        """Take in one round: the target's verification and what the draft did beside it."""
        self._verifications.append(verification.seconds)
        if burst is not None and burst.forwards:
            self._steps.append(burst.seconds / len(burst.forwards))

    @property
    def c(self) -> float | None:
        """Time of one verification ÷ time of one draft step; None before both were seen."""
        if not self._verifications or not self._steps:
            return None
        return median(self._verifications) / median(self._steps)
