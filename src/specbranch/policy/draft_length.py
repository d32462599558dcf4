"""The draft length: how many draft tokens become the next chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbranch.policy.latency import cumulative_acceptance
from specbranch.policy.signal import Keep, Signal


def entropy(log_q: Tensor) -> float:
    """Shannon entropy in nats of a warped draft distribution; float32 ``[vocabulary]``."""
    return torch.special.entr(log_q.exp()).sum().item()


def kept_length(values: Sequence[float], epsilon: float) -> int:
    """How many draft tokens the confidence rule keeps (SpecBranch §5, signal s = 1).

    Tokens are kept until the first whose value is below `epsilon`. That one becomes the branch
    point. In the paper the value is the draft's confidence; here it is the estimated probability
    of acceptance (see `DraftLengthPolicy`).
    """
    for i, value in enumerate(values):
        if value < epsilon:
            return i
    return len(values)


@dataclass(frozen=True)
class DraftLengthPolicy:
    """How much of a draft becomes the next chain; the rest is pruned. The default keeps all.

    Attributes:
        epsilon: estimated probability of acceptance below which a position is uncertain. The paper
            compares its ε with the draft's raw confidence, which is no probability of acceptance
            (docs/design.md).
        min_cumulative_acceptance: least probability that a token is accepted together with all
            those before it. If it is given, neither ε nor s counts.
        signal: of H-RAD, if there is one. Its s decides whether ε counts (SpecBranch §5).
        max_entropy: entropy in nats of the draft's distribution above which a chain ends, after
            its first token (AdaEDL, arXiv 2410.18351); None is no limit.
        min_next_acceptance: least probability that the next token is accepted, together with all
            those before it, for which it is drafted. It limits a draft stage, whose steps take
            time in which the target waits; None is no limit.
    """

    epsilon: float = 0.0
    min_cumulative_acceptance: float | None = None
    signal: Signal | None = None
    max_entropy: float | None = None
    min_next_acceptance: float | None = None

    def goes_on(self, acceptance: Sequence[float], then: float) -> bool:
        """Whether another token is drafted after these.

        Args:
            acceptance: of all tokens drafted so far, as for `kept`.
            then: that of the next token, as far as it is known.
        """
        least = self.min_next_acceptance
        return least is None or math.prod(acceptance) * then >= least

    def ends_before(self, log_q: Tensor) -> bool:
        """Whether no token is drafted from this warped distribution ``[vocabulary]``."""
        return self.max_entropy is not None and entropy(log_q) > self.max_entropy

    def kept(self, acceptance: Sequence[float]) -> int:
        """How many tokens to keep.

        Args:
            acceptance: estimated probability of each token, given that those before it are
                accepted. The estimate belongs to a position, not to the token drafted there.
                Therefore the length never depends on what is later tested against the target.
        """
        least = self.min_cumulative_acceptance
        if least is not None:
            return sum(value >= least for value in cumulative_acceptance(acceptance))
        if self.signal is None or self.signal.keep == Keep.CONFIDENT:
            return kept_length(acceptance, self.epsilon)
        return 0 if self.signal.keep == Keep.NOTHING else len(acceptance)
