"""The rollback-aware cost model: what drafting and verifying take, and which of it pays.

Times are straight lines in the number of tokens or branches. A choice that takes longer is worth it
where it commits more tokens a second than decoding does on the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

MEMORY = 0.97  # what a sample counts after each further one: some thirty of them matter
OUTLIER = 2.0  # times the estimate: longer was the machine's doing, not the model's


@dataclass(frozen=True)
class LatencyLine:
    """Seconds of a forward of n tokens (of a draft step: of n branches): ``base + each · n``."""

    base: float
    each: float = 0.0

    def seconds(self, n: float) -> float:
        return self.base + self.each * n


class LatencyEstimate:
    """A `LatencyLine` by least squares over what was seen lately."""

    def __init__(self) -> None:
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def observe(self, n: float, seconds: float) -> None:
        """Take in a forward, or the mean of several."""
        if self._weight > 3:
            seconds = min(seconds, OUTLIER * self.cost.seconds(n))
        values = (1.0, n, seconds, n * n, n * seconds)
        sums = (self._weight, self._n, self._t, self._nn, self._nt)
        self._weight, self._n, self._t, self._nn, self._nt = (
            MEMORY * old + new for old, new in zip(sums, values, strict=True)
        )

    @property
    def known(self) -> bool:
        return self._weight > 0

    @property
    def cost(self) -> LatencyLine:
        """The line; level where n hardly varied. It needs one sample."""
        n, t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - n * n
        if variance < 0.1:
            return LatencyLine(t)
        each = max(0.0, (self._nt / self._weight - n * t) / variance)
        each = min(each, t / max(n, 1.0))  # the base is not negative
        return LatencyLine(t - each * n, each)


def cumulative_acceptance(acceptance: Sequence[float]) -> list[float]:
    """Probability that each token is accepted along with all those before it."""
    return list(accumulate(acceptance, mul))


def best_width(values: Sequence[float], cost: LatencyLine) -> int:
    """How many of the most valuable to work on in one step, for the most value a second.

    Args:
        values: n ≥ 1 of them, in falling order.
        cost: of a step, by how many are worked on.
    """
    gained = list(accumulate(values))
    return max(range(1, len(values) + 1), key=lambda k: gained[k - 1] / cost.seconds(k))
