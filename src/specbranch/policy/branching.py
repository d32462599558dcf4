"""Where to branch, how wide, and on which candidates (DESIGN §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbranch.policy.latency import cumulative_acceptance
from specbranch.policy.signal import Keep, Signal


def confidence(scores: Tensor) -> list[float]:
    """The draft's confidence at n places: the largest softmax probability of each row.

    Args:
        scores: float32 ``[n, vocabulary]``: the draft's raw logits (DESIGN §2); or for `coupled`
            sampling log q plus the noise that the target will choose by, too. The raw ones say
            little there about whether both will choose the same token.
    """
    values: list[float] = scores.softmax(-1).amax(-1).tolist()
    return values


def entropy(log_q: Tensor) -> float:
    """Shannon entropy in nats of the warped draft distribution; float32 ``[vocabulary]``."""
    return torch.special.entr(log_q.exp()).sum().item()


def kept_length(values: Sequence[float], epsilon: float) -> int:
    """How many draft tokens the confidence rule keeps (paper §5, signal s = 1).

    Tokens are kept until the first whose value is below `epsilon`: that one becomes the branch
    point. In the paper the value is the draft's confidence; see `DraftLengthPolicy` for what it
    is here.
    """
    for i, value in enumerate(values):
        if value < epsilon:
            return i
    return len(values)


@dataclass(frozen=True)
class DraftLengthPolicy:
    """How much of a draft becomes the next chain; what follows is pruned. At first, all.

    Attributes:
        epsilon: probability of acceptance, as estimated, below which a position is uncertain. The
            paper compares its ε with the draft's raw confidence, which is no probability of
            acceptance (DESIGN §4).
        reach: least probability that a token is accepted along with those before it, instead.
        signal: of H-RAD, if there is one. Its s decides whether ε counts (paper §5).
        onward: least probability that the next token is accepted, along with those before it, for
            which it is drafted: that takes time of its own where the target waits.
        entropy: most nats of the draft's distribution from which a chain goes on after its first
            token (AdaEDL); None is no limit.
    """

    epsilon: float = 0.0
    reach: float | None = None
    signal: Signal | None = None
    entropy: float | None = None
    onward: float | None = None

    def goes_on(self, acceptance: Sequence[float], then: float) -> bool:
        """Whether another token is drafted after these.

        Args:
            acceptance: as for `kept`, of all that were drafted.
            then: that of the next one, as far as it is known.
        """
        return self.onward is None or math.prod(acceptance) * then >= self.onward

    def ends_before(self, log_q: Tensor) -> bool:
        """Whether no token is drafted from this warped distribution ``[vocabulary]``."""
        return self.entropy is not None and entropy(log_q) > self.entropy

    def kept(self, acceptance: Sequence[float]) -> int:
        """How many tokens to keep.

        Args:
            acceptance: estimated probability of each token, given those before it. It belongs to a
                place, not to the token drafted there, so that the length never depends on what is
                later tested against the target.
        """
        if self.reach is not None:
            return sum(reach >= self.reach for reach in cumulative_acceptance(acceptance))
        if self.signal is None or self.signal.keep == Keep.CONFIDENT:
            return kept_length(acceptance, self.epsilon)
        return 0 if self.signal.keep == Keep.NOTHING else len(acceptance)


def branch_count(branch_point_confidence: float, k_max: int) -> int:
    """``k = max(1, floor(k_max · (1 − confidence)))`` (paper §5)."""
    return max(1, int(k_max * (1 - branch_point_confidence)))


def candidates(scores: Tensor, k: int) -> list[tuple[int, float]]:
    """The k tokens of highest score, best first, and their share of the scores' softmax.

    These are the branches of the branch point.

    Scores are log q, or for `coupled` sampling log q plus the noise that the target will choose
    by. Either way the set is fixed before the target's token is known, which makes the selection
    of a survivor lossless. Tokens that the sampling parameters forbid (score −∞) are no candidates.
    """
    best = scores.softmax(-1).topk(min(k, scores.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(token, share) for token, share in pairs if share > 0]


@dataclass(frozen=True)
class Outcome:
    """A way in which a verification may end.

    Attributes:
        accepted: chain tokens that the target accepts.
        token: the target's, after them.
        probability: as estimated.
    """

    accepted: int
    token: int
    probability: float


def outcomes(
    chain: Sequence[int], acceptance: Sequence[float], scores: Tensor, k: int, even: bool = False
) -> list[Outcome]:
    """The k likeliest ways in which the verification of a chain can end (DESIGN §4b).

    The outcome of i chain tokens accepted and the target's token y after them has the probability
    Π_{j<i} a_j · (1 − a_i) · r_i(y) before the chain's end, where r_i leaves out the drafted token,
    and Π a_j · q(y) at it. Where the token that the draft would go on with is known to be accepted
    with probability a_n, that one has Π a_j · a_n there, and the others share the rest.

    Args:
        chain: n ≥ 0 draft tokens.
        acceptance: estimated probability of each, given those before it; and, if it is to count,
            of the likeliest one after them.
        scores: float32 ``[n + 1, vocabulary]``: log q at every place of the chain and after it, or
            what else ranks the target's token there; −∞ is never a candidate.
        even: as many for each place, instead: the best of every place before the second of any.

    Returns:
        Likeliest first; fixed before the target's tokens are known.
    """
    n = len(chain)
    places = scores.softmax(-1)
    drafted = list(chain)
    if len(acceptance) > n:
        drafted.append(int(scores[n].argmax()))
    if drafted:
        rows = torch.arange(len(drafted))
        places[rows, torch.tensor(drafted)] = 0.0
        places[: len(drafted)] /= places[: len(drafted)].sum(-1, keepdim=True).clamp_min(1e-12)
    best = places.topk(min(k, places.shape[-1]))
    ranked = []  # rank at its place, probability, place and token
    reach = 1.0
    for i, (weights, tokens) in enumerate(
        zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ):
        accepted = acceptance[i] if i < len(acceptance) else 0.0
        if i == n < len(drafted):
            ranked.append((0, reach * accepted, n, drafted[n]))
        share = reach * (1 - accepted)
        pairs = zip(weights, tokens, strict=True)
        ranked += [(r, share * w, i, y) for r, (w, y) in enumerate(pairs, 1) if w > 0]
        reach *= accepted
    # The order of places breaks ties, so that the result is a fixed one.
    ranked.sort(key=lambda one: (one[0] if even else 0, -one[1]))
    return [Outcome(place, token, probability) for _, probability, place, token in ranked[:k]]


def survivor(prepared: Sequence[tuple[int, int]], outcome: tuple[int, int]) -> int | None:
    """Index of the branch prepared for an outcome (tokens accepted, the target's); None: none."""
    return prepared.index(outcome) if outcome in prepared else None
