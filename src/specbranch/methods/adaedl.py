"""AdaEDL (Agrawal et al., arXiv 2410.18351): SpS whose drafts stop where they become unlikely.

A draft token is accepted with a probability of at least about 1 − √(c · H), where H is the entropy
of the distribution it is drafted from (§3 there; its γ is c here). Drafting stops before the first
token for which that is below a threshold λ, and λ follows the acceptance seen (algorithm 1). The
first token is always drafted: a chain of none would teach λ nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from specbranch.config import MOST_GAMMA
from specbranch.methods.base import MethodContext
from specbranch.methods.speculative import Speculative
from specbranch.metrics import Round
from specbranch.policy.draft_length import DraftLengthPolicy
from specbranch.workers.messages import VerifyResult

# The paper's constants (§3.1), with its names.
C = 0.2  # γ
ALPHA = 0.9  # acceptance to aim at
BETA_1 = 0.5  # memory of the acceptance
BETA_2 = 0.9  # memory of λ
EPSILON = 0.01  # step of λ
START = 0.5  # of λ: the paper tries 0.3 to 0.9


@dataclass
class Threshold:
    """λ, as algorithm 1 adapts it.

    Attributes:
        most: L, tokens of the longest draft.
        value: λ.
        acceptance: running share of drafted tokens that were accepted.
    """

    most: int
    value: float = START
    acceptance: float = ALPHA

    def policy(self) -> DraftLengthPolicy:
        """Stop where 1 − √(c · H) < λ, which is where H > (1 − λ)² / c."""
        return DraftLengthPolicy(max_entropy=(1 - self.value) ** 2 / C)

    def observe(self, drafted: int, accepted: int) -> None:
        """Take in what became of a draft of one token or more."""
        self.acceptance = BETA_1 * self.acceptance + (1 - BETA_1) * accepted / drafted
        wanted = self.value
        if self.acceptance < ALPHA:
            wanted += EPSILON
        elif accepted != self.most:  # a draft of full length could not have been longer
            wanted -= EPSILON
        # Above 1, which the bound never exceeds, λ would have no meaning.
        self.value = min(1.0, BETA_2 * self.value + (1 - BETA_2) * wanted)


class AdaEDL(Speculative):
    """SpS with a threshold on the bound; γ is the longest draft."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, auto_gamma=MOST_GAMMA)
        self._threshold = Threshold(self._gamma)

    def draft_length(self) -> DraftLengthPolicy:
        """When the next draft stops short of γ: before an unlikely token."""
        return self._threshold.policy()

    def absorb_verification(self, result: VerifyResult) -> Round:
        done = super().absorb_verification(result)
        if done.chain:
            self._threshold.observe(done.chain, done.accepted)
        return done
