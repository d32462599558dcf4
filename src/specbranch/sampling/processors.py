"""From a model's logits to the log-probabilities that the sampling parameters make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbranch.sampling_params import SamplingParams

# Below, float32 cannot divide by a temperature; sampling is greedy long before.
LEAST_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class LogitsPipeline:
    """What sampling parameters do to rows of logits, in `transformers`' order.

    Attributes:
        by_history: processors that look at the token ids before a row.
        warpers: processors that look at the row alone; none where decoding is greedy.
        temperature: divides the logits before the warpers; 0 is greedy decoding.
    """

    by_history: LogitsProcessorList
    warpers: LogitsProcessorList
    temperature: float

    @classmethod
    def of(cls, params: SamplingParams) -> Self:
        """The pipeline of these parameters."""
        by_history = LogitsProcessorList(params.extra_processors)
        if params.repetition_penalty != 1:
            by_history.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
        made: list[Any] = []
        if not params.greedy:
            if params.top_k:
                made.append(TopKLogitsWarper(params.top_k))
            if params.top_p < 1:
                made.append(TopPLogitsWarper(params.top_p))
            if params.min_p:
                made.append(MinPLogitsWarper(params.min_p))
        return cls(by_history, LogitsProcessorList(made), params.temperature)

    @property
    def is_identity(self) -> bool:
        """Whether the logits rank the tokens as they are: greedy decoding without a processor."""
        return self.temperature == 0 and not self.by_history

    @property
    def needs_history(self) -> bool:
        """Whether a row depends on the token ids before it."""
        return bool(self.by_history)

    def __call__(self, logits: Tensor, histories: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Log-probabilities of n rows.

        A row is rounded the same however many rows there are: every step works along a row.

        Args:
            logits: float32 ``[n, vocabulary]``; not written to.
            histories: for each row the token ids before it, where `needs_history`.

        Returns:
            float32 ``[n, vocabulary]``.
        """
        scores = logits
        if self.by_history:
            assert histories is not None
            rows = zip(logits, histories, strict=True)
            scores = torch.cat([self._processed(row, history) for row, history in rows])
        if self.temperature not in (0, 1):
            # The largest is taken off first, so that a tiny temperature gives −∞ and no NaN.
            scores = scores - scores.amax(-1, keepdim=True)
            scores = scores / max(self.temperature, LEAST_TEMPERATURE)
        if self.warpers:
            nothing = torch.empty((len(scores), 0), dtype=torch.long, device=scores.device)
            scores = self.warpers(nothing, scores)
        return scores.log_softmax(-1)

    def _processed(self, row: Tensor, history: Sequence[int]) -> Tensor:
        """Scores ``[1, vocabulary]`` of a row after the processors with a history."""
        ids = torch.tensor([list(history)], device=row.device)
        scores: Tensor = self.by_history(ids, row[None])
        return scores
