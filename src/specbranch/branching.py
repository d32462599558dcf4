"""Where to branch, how wide, and on which candidates (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def confidence(logits: Tensor) -> float:
    """The draft's largest raw softmax probability; `logits` is float32 ``[vocabulary]``."""
    return logits.softmax(-1).max().item()


def kept_length(confidences: Sequence[float], epsilon: float) -> int:
    """How many draft tokens the confidence rule keeps (paper §5, signal s = 1).

    Tokens are kept until the first whose confidence is below `epsilon`: that one becomes the
    branch point. Confidence belongs to a position, not to the token drafted there, so that the
    length never depends on what is later tested against the target.
    """
    for i, value in enumerate(confidences):
        if value < epsilon:
            return i
    return len(confidences)


def branch_count(branch_point_confidence: float, k_max: int) -> int:
    """``k = max(1, floor(k_max · (1 − confidence)))`` (paper §5)."""
    return max(1, int(k_max * (1 - branch_point_confidence)))


def candidates(scores: Tensor, k: int) -> list[int]:
    """The k tokens of highest score, best first: the branches of the branch point.

    Scores are log q, or for `coupled` sampling log q plus the noise that the target will choose
    by. Either way the set is fixed before the target's token is known, which makes the selection
    of a survivor lossless. Tokens that the sampling parameters forbid (score −∞) are no candidates.
    """
    best = scores.topk(min(k, scores.shape[-1]))
    return best.indices[best.values > -torch.inf].tolist()


def survivor(branch_tokens: Sequence[int], token: int) -> int | None:
    """Index of the branch whose candidate is the target's token; None is a miss."""
    return branch_tokens.index(token) if token in branch_tokens else None
