"""H-RAD's signal: what the predictor says after a verification, as plain numbers.

Plain numbers travel to any executor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Keep(IntEnum):
    """SpecBranch's signal s: how much of the next γ draft tokens to keep (§5)."""

    NOTHING = 0
    CONFIDENT = 1
    ALL = 2


@dataclass(frozen=True)
class Signal:
    """The prediction for the text after one verification.

    Attributes:
        keep: s.
        offsets, slopes: γ numbers each. The draft token at position i is accepted, if those before
            it are, with probability sigmoid(offsets[i] + slopes[i] · logit(its confidence)).
    """

    keep: Keep
    offsets: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()

    def acceptance(self, confidences: Sequence[float], place: int = 0) -> list[float]:
        """Estimated probability of acceptance of each token, given that those before it are.

        Positions from γ on are treated like the last one.

        Args:
            confidences: of the draft, at the position of each token.
            place: position of the first token.
        """
        last = len(self.offsets) - 1
        found = []
        for i, confidence in enumerate(confidences, place):
            x = self.offsets[min(i, last)] + self.slopes[min(i, last)] * logit(confidence)
            found.append(1 / (1 + math.exp(-x)))
        return found


def logit(probability: float) -> float:
    """``log(p / (1 − p))`` with p bounded to [0.001, 0.999]."""
    bounded = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(bounded / (1 - bounded))
