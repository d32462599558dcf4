"""How good predictions of classes and of acceptance are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specbranch.policy.signal import Keep

LEAST = 1e-3  # probabilities nearer to 0 or 1 are judged as this: one surprise is not everything


@dataclass(frozen=True)
class Scores:
    """Of predicted classes. Accuracy is left out: the classes are unbalanced.

    Attributes:
        confusion: rows of each true class (row) predicted as each (column), int64 ``[3, 3]``.
    """

    confusion: Tensor

    @classmethod
    def of(cls, labels: Tensor, predicted: Tensor) -> Scores:
        """Scores of int64 ``[n]`` against int64 ``[n]``."""
        count = len(Keep)
        cells = torch.bincount(labels * count + predicted, minlength=count * count)
        return cls(cells.view(count, count))

    @property
    def precision(self) -> list[float]:
        """Of each class: how much of what was predicted so is so; 0 where nothing was."""
        return self._of_diagonal(self.confusion.sum(0))

    @property
    def recall(self) -> list[float]:
        """Of each class: how much of what is so was predicted so."""
        return self._of_diagonal(self.confusion.sum(1))

    @property
    def f1(self) -> list[float]:
        """Of each class: the harmonic mean of precision and recall."""
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
    """How well probabilities fit what came of it; less is better.

    Attributes:
        brier: mean squared difference.
        log_loss: mean negative log-likelihood, in nats.
    """

    brier: float
    log_loss: float

    @classmethod
    def of(cls, estimates: Tensor, happened: Tensor) -> Fit:
        """Of float32 ``[n]`` against bool ``[n]``."""
        bounded = estimates.clamp(LEAST, 1 - LEAST)
        squares = (bounded - happened.float()).square()
        logs = torch.where(happened, bounded, 1 - bounded).log()
        return cls(squares.mean().item(), -logs.mean().item())
