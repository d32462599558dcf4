"""The warped next-token distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessorList


def warp(
    logits: Tensor, contexts: Sequence[Sequence[int]], processors: LogitsProcessorList
) -> Tensor:
    """Log-probabilities after the sampling parameters.

    Args:
        logits: float32 ``[n, vocabulary]``.
        contexts: for each row the token ids before it.

    Returns:
        float32 ``[n, vocabulary]``; rows are worked on one by one, so that how a row is rounded
        does not depend on how many there are.
    """
    rows = []
    for row, context in zip(logits, contexts, strict=True):
        scores = row[None]
        if processors:
            ids = torch.tensor([list(context)], device=logits.device)
            scores = processors(ids, scores)
        rows.append(scores.log_softmax(-1))
    return torch.cat(rows)
