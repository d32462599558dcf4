"""PEARL (Liu et al., arXiv 2408.11850): the draft drafts γ tokens while the target verifies.

*Pre-verify*: nothing is left to verify, and the target gives its token for the very place at which
the draft begins. If that is the draft's first token, the others wait for the next round; else they
are thrown away, but only one verification is lost, which plain decoding would have needed, too.

*Post-verify*: the target verifies what waited, and the draft goes on beyond it. As long as all is
accepted, a draft grows without end, γ tokens a round: its length adapts. A rejection throws away
what was drafted, and the next round is a pre-verify.

The draft's first token is that of a single branch after what is being verified. Under the rejection
rule the paper accepts it with probability min(1, p/q). Here it has to be the target's own draw: the
target decides before it knows that token, and that is as lossless, but accepts it less often.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbranch.config import MOST_GAMMA
from specbranch.methods.base import Method, MethodContext, VerifyPlan, commit
from specbranch.metrics import Fates, Round
from specbranch.policy.signal import Signal
from specbranch.token_sequence import Origin
from specbranch.workers.messages import (
    Branch,
    BranchText,
    CommitUpdate,
    Draft,
    VerifyResult,
    VerifyText,
)


class Pearl(Method):
    """Rounds of (verify ‖ draft), and never one after the other.

    With γ = auto the draft goes on until the verification is done, which makes γ the ratio of the
    models' speeds, the paper's choice.
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._auto = context.config.gamma == "auto"
        gamma = context.config.gamma
        self._gamma = MOST_GAMMA if gamma == "auto" else gamma
        self._waiting = Draft()  # pre-verify while it is empty, else post-verify
        self._update = CommitUpdate(self.sequence.length)
        self._valid, self._result = 0, VerifyResult(0, 0)

    @property
    def in_flight(self) -> int:
        return 0 if self.sequence.finished else len(self._waiting)

    def plan(self) -> VerifyPlan:
        text, room = self.sequence.id, self.sequence.remaining - 1
        return VerifyPlan(
            VerifyText(text, self._waiting.tokens, self._waiting.log_q),
            BranchText(text, self._update, room, self._gamma - 1, k_max=1, branching="point"),
            overlapped=True,
            stop_branching=self._auto,
        )

    def absorb_verification(self, result: VerifyResult) -> Round:
        self._valid, self._result = self.sequence.length + result.accepted, result
        return commit(self.sequence, self._waiting.tokens, result)

    def absorb_branches(
        self, done: Round, branches: Sequence[Branch], signal: Signal | None
    ) -> None:
        result, waiting = self._result, self._waiting
        drafted = branches[0] if branches else None
        if drafted is not None and drafted.outcome == (result.accepted, result.token):
            done.outcome = "hit"
            if len(done.tokens) > result.accepted:  # the text may have ended before it
                done.fates += Fates(accepted=1)
                done.origins[-1] = self.sequence.origins[-1] = Origin.BRANCH
            else:
                done.fates += Fates(in_flight=1)
            self._waiting = drafted.continuation
            self._update = CommitUpdate(self._valid + len(drafted), survivor=0)
            if self.sequence.finished:
                done.fates += Fates(in_flight=len(self._waiting))
        else:
            if drafted is not None:
                done.outcome = "miss" if result.accepted == len(waiting) else "rollback"
                done.fates += Fates(rolled_back=len(drafted))
            self._waiting = Draft()
            self._update = CommitUpdate(self._valid, [result.token])
