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


def outcomes(
    chain: Sequence[int], acceptance: Sequence[float], scores: Tensor, k: int
) -> list[tuple[int, int]]:
    """The k likeliest ways in which the verification of a chain can end (DESIGN §4b).

    An outcome is the number i of chain tokens accepted and the target's token y after them, with
    probability Π_{j<i} a_j · (1 − a_i) · r_i(y) before the chain's end, where r_i leaves out the
    drafted token, and Π a_j · q(y) at it.

    Args:
        chain: n ≥ 0 draft tokens.
        acceptance: estimated probability of each, given those before it.
        scores: float32 ``[n + 1, vocabulary]``: log q at every place of the chain and after it, or
            what else ranks the target's token there; −∞ is never a candidate.

    Returns:
        Pairs (i, y), likeliest first; fixed before the target's tokens are known.
    """
    n = len(chain)
    places = scores.softmax(-1)
    if n:
        rows = torch.arange(n)
        places[rows, torch.tensor(list(chain))] = 0.0
        places[:n] /= places[:n].sum(-1, keepdim=True).clamp_min(1e-12)
    best = places.topk(min(k, places.shape[-1]))
    found = []
    reach = 1.0
    for i, (weights, tokens) in enumerate(
        zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ):
        share = reach * (1 - acceptance[i]) if i < n else reach
        found += [(share * w, i, y) for w, y in zip(weights, tokens, strict=True) if w > 0]
        reach *= acceptance[i] if i < n else 1.0
    # Sorted by probability; the order of places breaks ties, so that the result is a fixed one.
    found.sort(key=lambda outcome: -outcome[0])
    return [(i, y) for _, i, y in found[:k]]


def survivor(prepared: Sequence[tuple[int, int]], outcome: tuple[int, int]) -> int | None:
    """Index of the branch prepared for an outcome (tokens accepted, the target's); None: none."""
    return prepared.index(outcome) if outcome in prepared else None
