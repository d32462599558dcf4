"""Estimates of how likely the target accepts a draft token, learned from verified tokens.

A draft's confidence ranks its tokens well, but it is no probability of acceptance (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from specbranch.policy.signal import Signal

BINS = 10
PRIOR = 4.0  # weight of the initial estimate, in tokens, so that the first few do not decide
MEMORY = 500.0  # tokens of a bin that count: a new kind of text is learned within as many


class Calibration:
    """Acceptance by confidence, in bins of equal width with linear interpolation between them.

    Args:
        least: the initial estimate at confidence 0. At confidence 1 it is 1, with a straight line
            between the two. Tokens of low confidence are accepted more often than it says.
    """

    def __init__(self, least: float = 0.5) -> None:
        self._least = least
        self.reset()

    def reset(self) -> None:
        """Return to the initial estimate."""
        centers = [(i + 0.5) / BINS for i in range(BINS)]
        self._accepted = [PRIOR * (self._least + (1 - self._least) * c) for c in centers]
        self._seen = [PRIOR] * BINS

    def observe(self, confidence: float, accepted: bool) -> None:
        """Add one verified token.

        Args:
            confidence: of the token, between 0 and 1.
            accepted: whether the target accepted it.
        """
        i = min(int(confidence * BINS), BINS - 1)
        kept = 1 - 1 / MEMORY
        self._accepted[i] = self._accepted[i] * kept + accepted
        self._seen[i] = self._seen[i] * kept + 1

    @property
    def mean(self) -> float:
        """Probability of acceptance of a token of unknown confidence."""
        return sum(self._accepted) / sum(self._seen)

    def estimate(self, confidence: float) -> float:
        """Probability of acceptance, given that all tokens before are accepted.

        Args:
            confidence: of the token, between 0 and 1.
        """
        position = min(max(confidence * BINS - 0.5, 0.0), BINS - 1.0)
        low = min(int(position), BINS - 2)
        weight = position - low
        below = self._accepted[low] / self._seen[low]
        above = self._accepted[low + 1] / self._seen[low + 1]
        return below * (1 - weight) + above * weight


class AcceptanceModel:
    """The calibrations of one draft model, separate for confidences of different kinds.

    For `coupled` sampling a confidence includes the noise by which the target will choose. The same
    value then means another probability of acceptance than that of a raw confidence, which greedy
    decoding and the `rejection` rule have.

    Attributes:
        ngram: acceptance of n-gram matches, by `Match.strengths`.
    """

    def __init__(self) -> None:
        self._raw = Calibration()
        self._coupled = Calibration()
        self.ngram = Calibration(least=0.0)

    def of(self, coupled: bool) -> Calibration:
        """The calibration of the draft model's confidences.

        Args:
            coupled: whether they include the target's noise.
        """
        return self._coupled if coupled else self._raw

    def of_draft(
        self, signal: Signal | None, confidences: Sequence[float], coupled: bool, place: int = 0
    ) -> list[float]:
        """Estimated acceptance of each of n draft tokens, given those before it.

        Args:
            signal: of H-RAD, which tells more where there is one.
            confidences: of the draft model at their places.
            coupled: as for `of`.
            place: of the first of them after the committed text.
        """
        if signal is not None and signal.offsets:
            return signal.acceptance(confidences, place)
        calibration = self.of(coupled)
        return [calibration.estimate(value) for value in confidences]

    def of_chain(
        self,
        signal: Signal | None,
        confidences: Sequence[float],
        retrieved: bool,
        coupled: bool,
    ) -> list[float]:
        """The same of a chain, whose confidences are `Match.strengths` if it is retrieved."""
        if retrieved:
            return [self.ngram.estimate(value) for value in confidences]
        return self.of_draft(signal, confidences, coupled)

    def reset(self) -> None:
        """Return to the initial estimates. Calibrations handed out before remain in use."""
        for calibration in (self._raw, self._coupled, self.ngram):
            calibration.reset()
