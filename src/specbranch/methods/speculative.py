"""SpS: speculative decoding (Leviathan et al. 2023; Chen et al. 2023), models sequential."""

from __future__ import annotations

from specbranch.methods.base import DraftPlan, Method, MethodContext, Plan, VerifyPlan, commit
from specbranch.metrics import Round
from specbranch.policy.draft_length import DraftLengthPolicy
from specbranch.workers.messages import CommitUpdate, Draft, DraftText, VerifyResult, VerifyText

AUTO_GAMMA = 5  # nothing hides the draft's time here: a short chain, as other engines have it


class Speculative(Method):
    """Drafts γ tokens, verifies them in one forward, keeps what the target accepts and its next."""

    def __init__(self, context: MethodContext, auto_gamma: int = AUTO_GAMMA) -> None:
        super().__init__(context)
        gamma = context.config.gamma
        self._gamma = auto_gamma if gamma == "auto" else gamma
        self._update = CommitUpdate(self.sequence.length)
        self._chain: Draft | None = None

    def draft_length(self) -> DraftLengthPolicy:
        """When the next draft stops short of γ: never."""
        return DraftLengthPolicy()

    @property
    def in_flight(self) -> int:
        return 0 if self._chain is None else len(self._chain)

    def plan(self) -> Plan:
        if self._chain is None:
            gamma = min(self._gamma, self.sequence.remaining - 1)
            return DraftPlan(DraftText(self.sequence.id, self._update, gamma, self.draft_length()))
        return VerifyPlan(VerifyText(self.sequence.id, self._chain.tokens, self._chain.log_q))

    def absorb_draft(self, draft: Draft) -> None:
        self._chain = draft

    def absorb_verification(self, result: VerifyResult) -> Round:
        assert self._chain is not None
        chain, self._chain = self._chain, None
        self._update = CommitUpdate(self.sequence.length + result.accepted, [result.token])
        return commit(self.sequence, chain.tokens, result)
