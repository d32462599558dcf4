"""SpecBranch (Shen et al., arXiv 2506.01979): drafting on several branches beside verification.

Branches prepare for the likeliest outcomes of the verification anywhere on the chain
(docs/design.md), or with ``branching="point"`` at its end alone, as in the paper. How much of a
draft becomes the next chain is the paper's rule (H-RAD's s, and ε on the estimated acceptance), or
with ``epsilon="auto"`` the latency model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from specbranch.methods.base import (
    DraftPlan,
    Method,
    MethodContext,
    Plan,
    VerifyPlan,
    commit,
)
from specbranch.metrics import Fates, Round
from specbranch.policy.branching import survivor
from specbranch.policy.draft_length import DraftLengthPolicy
from specbranch.policy.ngram import Lookup, Replay
from specbranch.policy.signal import Signal
from specbranch.token_sequence import Origin
from specbranch.workers.messages import (
    Branch,
    BranchText,
    CommitUpdate,
    Draft,
    DraftText,
    VerifyResult,
    VerifyText,
)

# How a round is decoded: both models at once, one after the other, or the target alone.
Stage = Literal["overlapped", "sequential", "target alone"]


class SpecBranch(Method):
    """Rounds of (verify ‖ branch); a draft stage only where no branch survived (paper §4-5).

    Where both models share few cores, short drafts and verifications on all of them, in sequence,
    may be faster. Where repeats or nothing at all beats the draft, the draft rests (see `Tuning`).
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self._tuning = context.tuning
        self._tuning.begin(context.divides_cores)
        sequence, config = self.sequence, self._config
        self._replay = Replay(
            sequence.prompt, self._tuning.calibration, config.retrieved, sequence.stop_ids
        )
        self._update = CommitUpdate(sequence.length)
        self._chain: Draft | None = None  # None: a draft stage comes next
        self._signal: Signal | None = None
        self._stage: Stage | None = None  # of the round under way
        self._lookups: Sequence[Lookup] = ()
        self._before, self._result = 0, VerifyResult(0, 0)

    @property
    def in_flight(self) -> int:
        return 0 if self.sequence.finished or self._chain is None else len(self._chain)

    def plan(self) -> Plan:
        if self._stage is None:
            self._stage = self._next_stage()
        if self._stage == "target alone":
            return self._plan_without_draft()
        return self._plan_draft() if self._chain is None else self._plan_verification(self._chain)

    def _next_stage(self) -> Stage:
        if self._chain is None and not self._tuning.speculates:
            return "target alone"
        return "overlapped" if self._tuning.overlaps else "sequential"

    def _plan_draft(self) -> DraftPlan:
        room = self.sequence.remaining - 1
        draft = DraftText(
            self.sequence.id,
            self._update,
            min(self._tuning.gamma, room),
            self._tuning.rule(self._signal, serial=True),
            min(self._config.retrieved, room),
        )
        return DraftPlan(draft, overlapped=self._stage == "overlapped")

    def _plan_verification(self, chain: Draft) -> VerifyPlan:
        overlapped = self._stage == "overlapped"
        confidences = [] if chain.retrieved else chain.confidences
        verify = VerifyText(
            self.sequence.id,
            chain.tokens,
            chain.log_q,
            confidences=confidences,
            judged=overlapped,
        )
        if not overlapped:  # without branches there is nothing to foresee
            return VerifyPlan(verify)
        config, tuning, signal = self._config, self._tuning, self._signal
        # Without a predictor nothing after a doubtful position is kept, so it is not drafted.
        epsilon = config.epsilon if config.epsilon != "auto" and signal is None else 0.0
        branch = BranchText(
            self.sequence.id,
            self._update,
            self.sequence.remaining - 1,
            tuning.gamma,
            config.branches,
            config.branching,
            epsilon,
            signal,
            config.retrieved,
        )
        return VerifyPlan(
            verify,
            branch,
            overlapped=True,
            step=tuning.step,
            stop_branching=config.gamma == "auto",
            judge=True,
        )

    def _plan_without_draft(self) -> VerifyPlan:
        """All cores for the target: what the text repeats is verified, or nothing."""
        # While drafting is not turned off, these rounds are to say what plain decoding takes.
        room = self.sequence.remaining - 1
        tokens: list[int] = []
        if self._tuning.paused:
            tokens = self.sequence.forced[:room] or self._replay.chain(room)
        self._chain = Draft(tokens, retrieved=bool(tokens))
        # No draft follows that H-RAD could judge: to keep features would cost time for nothing.
        return VerifyPlan(VerifyText(self.sequence.id, tokens, judged=False))

    def absorb_draft(self, draft: Draft) -> None:
        self._chain = draft
        self._update = CommitUpdate(self.sequence.length + len(draft))

    def absorb_verification(self, result: VerifyResult) -> Round:
        assert self._chain is not None
        self._before, self._result = self.sequence.length, result
        done = commit(self.sequence, self._chain.tokens, result)
        done.retrieved = self._chain.retrieved
        self._lookups = self._replay.observe(done.tokens)
        return done

    def absorb_branches(
        self, done: Round, branches: Sequence[Branch], signal: Signal | None
    ) -> None:
        if self._stage == "target alone":
            self._chain = None
            self._update = self._update.then(done.tokens)
            return
        self._signal = signal
        accepted, before = self._result.accepted, self._before
        winner = survivor([b.outcome for b in branches], (accepted, self._result.token))
        committed = len(done.tokens) > accepted  # whether the target's token is part of the text
        if winner is not None and committed:
            done.origins[-1] = self.sequence.origins[-1] = Origin.BRANCH
        done.fates += _of_branches(branches, winner, done, committed)
        if winner is None:
            if branches and accepted == done.chain:
                done.outcome = "miss"
            self._chain = None
            self._update = CommitUpdate(before + accepted, [self._result.token])
            return
        # Posterior drafting (paper §5): the survivor's continuation, cut, is the next chain.
        done.outcome = "hit"
        self._chain, pruned = _posterior(branches[winner].continuation, self._tuning.rule(signal))
        kept = len(self._chain) if self._chain is not None else 0
        self._update = CommitUpdate(before + accepted + 1 + kept, survivor=winner)
        done.fates += Fates(pruned=pruned)
        if self.sequence.finished:
            done.fates += Fates(in_flight=kept)

    def observe(self, done: Round) -> None:
        stage, self._stage = self._stage, None
        if stage == "target alone":
            assert done.verification is not None
            self._tuning.observe_plain(done.verification, len(done.tokens))
        else:
            self._tuning.observe(done, done.seconds, self._lookups)


def _posterior(draft: Draft, policy: DraftLengthPolicy) -> tuple[Draft | None, int]:
    """The next chain, and how many tokens were pruned; None: nothing was drafted yet."""
    if not draft.tokens:
        return (draft if policy.min_cumulative_acceptance is None else None), 0
    acceptance = draft.acceptance
    if policy.signal is not None and policy.signal.offsets and not draft.retrieved:
        acceptance = policy.signal.acceptance(draft.confidences)
    kept = policy.kept(acceptance)
    return draft.cut(kept), len(draft) - kept


def _of_branches(
    branches: Sequence[Branch], winner: int | None, done: Round, committed: bool
) -> Fates:
    """Fates of the branches. The next round decides on the survivor's continuation.

    When none survives, the main path went through the likeliest branch at the end of the chain, and
    that one is rolled back. All other branches were hedges.

    Args:
        committed: whether the survivor's candidate was; the text may have ended before it.
    """
    at_end = [i for i, branch in enumerate(branches) if branch.accepted == done.chain]
    main = at_end[0] if at_end and winner is None else None
    fates = Fates(hedged=sum(map(len, branches)))
    if winner is not None:
        fates.hedged -= len(branches[winner])
        fates += Fates(accepted=1) if committed else Fates(in_flight=1)
    elif main is not None:
        fates.hedged -= len(branches[main])
        fates.rolled_back = len(branches[main])
    return fates
