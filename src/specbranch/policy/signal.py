"""What the predictor says after a verification, in numbers that any executor can use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Keep(IntEnum):
    """The paper's signal s: what to keep of the next γ draft tokens."""

    NOTHING = 0
    CONFIDENT = 1
    ALL = 2


@dataclass(frozen=True)
class Signal:
    """Of the text after one verification.

    Attributes:
        keep: s.
        offsets, slopes: γ numbers each; the draft token at place i is accepted, if those before it
            are, with probability sigmoid(offsets[i] + slopes[i] · logit(its confidence)).
    """

    keep: Keep
    offsets: tuple[float, ...] = ()
    slopes: tuple[float, ...] = ()

    def acceptance(self, confidences: Sequence[float], place: int = 0) -> list[float]:
        """Estimated probability of each token's acceptance, given those before it.

        Places beyond γ are judged as the last.

        Args:
            confidences: the draft's at the place of each token.
            place: of the first of them.
        """
        last = len(self.offsets) - 1
        found = []
        for i, confidence in enumerate(confidences, place):
            x = self.offsets[min(i, last)] + self.slopes[min(i, last)] * logit(confidence)
            found.append(1 / (1 + math.exp(-x)))
        return found


def logit(probability: float) -> float:
    """``log(p / (1 − p))``, bounded at ±7, beyond which confidences say nothing more."""
    bounded = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(bounded / (1 - bounded))
