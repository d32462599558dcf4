"""The branches of a round: where they start, how many there are, and with which candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def confidence(scores: Tensor) -> list[float]:
    """The draft's confidence at n positions: the largest softmax probability of each row.

    Args:
        scores: float32 ``[n, vocabulary]``. These are the draft's raw logits; for `coupled`
            sampling, log q plus the noise by which the target will choose, because the raw logits
            tell little about whether both models will choose the same token.
    """
    values: list[float] = scores.softmax(-1).amax(-1).tolist()
    return values


def branch_count(branch_point_confidence: float, k_max: int) -> int:
    """``k = max(1, floor(k_max · (1 − confidence)))`` (SpecBranch §5)."""
    return max(1, int(k_max * (1 - branch_point_confidence)))


def candidates(scores: Tensor, k: int) -> list[tuple[int, float]]:
    """The candidates at the branch point: the k tokens of highest score.

    The set is fixed before the target's token is known. Therefore the selection of a survivor is
    lossless (docs/design.md).

    Args:
        scores: float32 ``[vocabulary]``: log q, or for `coupled` sampling log q plus the noise by
            which the target will choose. A token with score −∞ is never a candidate.
        k: most candidates.

    Returns:
        Pairs of a token and its softmax probability, the best first.
    """
    best = scores.softmax(-1).topk(min(k, scores.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(token, probability) for token, probability in pairs if probability > 0]


@dataclass(frozen=True)
class Outcome:
    """A way in which a verification may end.

    Attributes:
        accepted: number of chain tokens that the target accepts.
        token: id of the target's token after them.
        probability: estimated probability of this outcome.
    """

    accepted: int
    token: int
    probability: float


def outcomes(
    chain: Sequence[int], acceptance: Sequence[float], scores: Tensor, k: int, even: bool = False
) -> list[Outcome]:
    """The k likeliest ways in which the verification of a chain can end (docs/design.md).

    The outcome of i accepted tokens followed by the target's token y has the probability
    Π_{j<i} a_j · (1 − a_i) · r_i(y) before the end of the chain, where r_i is q without the drafted
    token, renormalised. At the end of the chain it is Π a_j · q(y). If the acceptance a_n of the
    token that the draft would append is known, that token's outcome has the probability Π a_j · a_n
    there, and the other tokens share the rest.

    Args:
        chain: n ≥ 0 draft tokens.
        acceptance: estimated probability of each token, given that those before it are accepted.
            It may have one value more, for the likeliest token after the chain.
        scores: float32 ``[n + 1, vocabulary]``: log q at each position of the chain and after it,
            or other scores that rank the target's token there. A token with score −∞ is never in
            an outcome.
        k: most outcomes.
        even: whether all positions get the same number of outcomes: the best of every position
            comes before the second of any.

    Returns:
        The outcomes, the likeliest first (with `even`, by rank first). They do not depend on the
        target's tokens.
    """
    n = len(chain)
    shares = scores.softmax(-1)
    drafted = list(chain)
    if len(acceptance) > n:
        drafted.append(int(scores[n].argmax()))
    if drafted:
        rows = torch.arange(len(drafted))
        shares[rows, torch.tensor(drafted)] = 0.0
        shares[: len(drafted)] /= shares[: len(drafted)].sum(-1, keepdim=True).clamp_min(1e-12)
    best = shares.topk(min(k, shares.shape[-1]))
    ranked = []  # rank at its position, and the outcome
    before = 1.0  # probability that all tokens before the position are accepted
    for i, (weights, tokens) in enumerate(
        zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ):
        accepted = acceptance[i] if i < len(acceptance) else 0.0
        if i == n < len(drafted):
            ranked.append((0, Outcome(n, drafted[n], before * accepted)))
        rest = before * (1 - accepted)
        pairs = zip(weights, tokens, strict=True)
        ranked += [(rank, Outcome(i, y, rest * w)) for rank, (w, y) in enumerate(pairs, 1) if w > 0]
        before *= accepted
    # The sort is stable: ties are broken by position, so that the result is deterministic.
    ranked.sort(key=lambda entry: (entry[0] if even else 0, -entry[1].probability))
    return [outcome for _, outcome in ranked[:k]]


def survivor(prepared: Sequence[tuple[int, int]], outcome: tuple[int, int]) -> int | None:
    """The index of the branch that was prepared for an outcome.

    Args:
        prepared: of each branch, the number of accepted tokens and the target's token after them.
        outcome: the same of the verification.

    Returns:
        The index, or None if no branch was prepared for it.
    """
    return prepared.index(outcome) if outcome in prepared else None
