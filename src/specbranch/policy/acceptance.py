"""How likely the target is to accept a draft token, learned from outcomes as they come (DESIGN §4).

A draft's confidence ranks its tokens well, but is no probability of acceptance.
"""

from __future__ import annotations

BINS = 10
PRIOR = 4.0  # outcomes' worth, so that the first few do not decide
MEMORY = 500.0  # outcomes of a bin that count: a new kind of text is learned within as many


class Calibration:
    """Acceptance by confidence, in bins of equal width with linear interpolation between them.

    Args:
        least: what it starts from at confidence 0; at 1 that is 1, and between them a straight
            line. A draft's low confidence is accepted more often than it says.
    """

    def __init__(self, least: float = 0.5) -> None:
        centers = [(i + 0.5) / BINS for i in range(BINS)]
        self._accepted = [PRIOR * (least + (1 - least) * center) for center in centers]
        self._seen = [PRIOR] * BINS

    def observe(self, confidence: float, accepted: bool) -> None:
        """Take in what became of one verified token."""
        i = min(int(confidence * BINS), BINS - 1)
        kept = 1 - 1 / MEMORY
        self._accepted[i] = self._accepted[i] * kept + accepted
        self._seen[i] = self._seen[i] * kept + 1

    @property
    def mean(self) -> float:
        """P(accept) whatever the confidence."""
        return sum(self._accepted) / sum(self._seen)

    def estimate(self, confidence: float) -> float:
        """P(accept) of a token of that confidence, if those before it are accepted."""
        place = min(max(confidence * BINS - 0.5, 0.0), BINS - 1.0)
        low = min(int(place), BINS - 2)
        share = place - low
        below = self._accepted[low] / self._seen[low]
        above = self._accepted[low + 1] / self._seen[low + 1]
        return below * (1 - share) + above * share
