"""Quality of predicted classes and of estimated probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specbranch.policy.signal import Keep

LEAST = 1e-3  # bound of a probability, so that one wrong certain estimate does not dominate


@dataclass(frozen=True)
class Scores:
    """Scores of predicted classes. Accuracy is left out, because the classes are unbalanced.

    Attributes:
        confusion: number of records of each true class (row) predicted as each class (column),
            int64 ``[3, 3]``.
    """

    confusion: Tensor

    @classmethod
    def of(cls, labels: Tensor, predicted: Tensor) -> Scores:
        """Scores of predicted classes, int64 ``[n]``, against the true ones, int64 ``[n]``."""
        count = len(Keep)
        cells = torch.bincount(labels * count + predicted, minlength=count * count)
        return cls(cells.view(count, count))

    @property
    def precision(self) -> list[float]:
        """Precision of each class; 0 where the class was never predicted."""
        return self._of_diagonal(self.confusion.sum(0))

    @property
    def recall(self) -> list[float]:
        """Recall of each class."""
        return self._of_diagonal(self.confusion.sum(1))

    @property
    def f1(self) -> list[float]:
        """F1 of each class: the harmonic mean of precision and recall."""
        return self._of_diagonal((self.confusion.sum(0) + self.confusion.sum(1)) / 2)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes."""
        return sum(self.f1) / len(self.f1)

    def _of_diagonal(self, wholes: Tensor) -> list[float]:
        found: list[float] = (self.confusion.diagonal() / wholes.clamp_min(0.5)).tolist()
        return found


@dataclass(frozen=True)
class Fit:
    """How well estimated probabilities fit the events; lower is better.

    Attributes:
        brier: mean squared difference.
        log_loss: mean negative log-likelihood, in nats.
    """

    brier: float
    log_loss: float

    @classmethod
    def of(cls, estimates: Tensor, happened: Tensor) -> Fit:
        """The fit of estimates, float32 ``[n]``, to events, bool ``[n]``."""
        bounded = estimates.clamp(LEAST, 1 - LEAST)
        squares = (bounded - happened.float()).square()
        logs = torch.where(happened, bounded, 1 - bounded).log()
        return cls(squares.mean().item(), -logs.mean().item())
