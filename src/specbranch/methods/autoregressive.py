"""Plain decoding: one token per target forward. What every other method must reproduce."""

from __future__ import annotations

from specbranch.methods.base import Method, VerifyPlan, commit
from specbranch.metrics import Round
from specbranch.workers.messages import VerifyResult, VerifyText


class Autoregressive(Method):
    """Verifies an empty chain, again and again."""

    def plan(self) -> VerifyPlan:
        return VerifyPlan(VerifyText(self.sequence.id, judged=False))

    def absorb_verification(self, result: VerifyResult) -> Round:
        return commit(self.sequence, [], result)
