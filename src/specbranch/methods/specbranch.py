"""SpecBranch (Shen et al., arXiv 2506.01979): drafting on several branches beside verification.

Branches prepare for the likeliest outcomes of the verification anywhere on the chain (DESIGN §4b),
or with ``branching="point"`` at its end alone, as in the paper. How much of a draft becomes the
next chain is the paper's rule (H-RAD's s, and ε on the chance of acceptance), or with
``epsilon="auto"`` the cost model's.
"""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.config import SpeculativeConfig
from specbranch.errors import ExecutorError
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Fates, Round
from specbranch.policy.branching import DraftLengthPolicy, survivor
from specbranch.policy.ngram import Replay
from specbranch.policy.signal import Signal
from specbranch.policy.tuning import Tuning
from specbranch.sequence import Origin, Sequence
from specbranch.workers.messages import Branch, BranchPlan, Chain, CommitUpdate, Verification


def specbranch(
    sequence: Sequence, executors: Executors, options: SpeculativeConfig
) -> Iterator[Round]:
    """Rounds of (verify ‖ branch); a draft stage only where no branch survived (paper §4-5).

    Where both executors share few cores, short drafts and verifications on all of them may be
    faster,
    in turn; where repeats or nothing at all beats the draft, it rests (see `Tuning`).
    """
    assert executors.draft is not None
    tuning = executors.tuning(options)
    tuning.begin(executors.compete)
    replay = Replay(sequence.prompt, tuning.calibration, options.retrieved, sequence.stop_ids)
    resolution = CommitUpdate(sequence.length)
    chain: Chain | None = None
    signal: Signal | None = None
    begun = executors.target.now()
    while not sequence.finished:
        if chain is None and not tuning.speculates:
            done = _without_draft(sequence, executors, tuning, replay)
            resolution = resolution.then(done.tokens)
            yield done
            begun = executors.target.now()
            continue

        overlap = tuning.overlaps
        executors.share_target(overlap)
        drafting = None
        if chain is None:
            room = sequence.remaining - 1
            gamma, retrieval = min(tuning.gamma, room), min(options.retrieved, room)
            rule = tuning.rule(signal, serial=True)
            drafting = executors.draft.submit(
                "draft", sequence.id, resolution, gamma, rule, retrieval
            )
            learning = executors.target.submit("learn") if overlap else None
            chain = drafting.result()
            if learning is not None:
                learning.result()
            resolution = CommitUpdate(sequence.length + len(chain))

        # Branch stage: both executors at once. Without branches, in turn, there is nothing to
        # foresee.
        branching = None
        if overlap:
            plan = _plan(sequence.remaining - 1, options, tuning, signal)
            branching = executors.draft.submit("branch", sequence.id, resolution, plan)
        confidences = [] if chain.retrieved else chain.confidences
        verifying = executors.target.submit(
            "verify", sequence.id, chain.tokens, chain.log_q, (), confidences, overlap
        )
        outcome: Verification = verifying.result()
        if branching is not None and options.gamma == "auto":
            branching.stop()

        # Resolve: while the draft ends its last step, what does not depend on its branches
        judging = executors.target.submit("judge", sequence.id) if overlap else None
        accepted, whole = outcome.accepted, outcome.accepted == len(chain)
        before = sequence.length
        done = commit(sequence, chain.tokens, outcome)
        done.retrieved = chain.retrieved
        done.draft_stage = drafting is not None
        done.drafting = drafting.span if drafting else None
        done.verification = verifying.span
        lookups = replay.observe(done.tokens)
        signal = judging.result() if judging is not None else None
        try:
            branches: list[Branch] = branching.result() if branching is not None else []
        except ExecutorError:
            yield done  # it is committed, whatever became of the draft
            raise
        winner = survivor([b.outcome for b in branches], (accepted, outcome.token))
        done.branches, done.branch_tokens = len(branches), sum(map(len, branches))
        done.branching = branching.span if branching is not None and branches else None
        committed = len(done.tokens) > accepted  # the target's token, too
        if winner is not None and committed:
            done.origins[-1] = sequence.origins[-1] = Origin.BRANCH
        done.fates += _of_branches(branches, winner, done, committed)
        if winner is not None:
            # Posterior drafting (paper §5): the survivor's continuation, cut, is the next chain.
            done.outcome = "hit"
            chain, pruned = _posterior(branches[winner].chain, tuning.rule(signal))
            length = before + accepted + 1 + (len(chain) if chain else 0)
            resolution = CommitUpdate(length, survivor=winner)
            done.fates += Fates(pruned=pruned)
            if sequence.finished and chain:
                done.fates += Fates(in_flight=len(chain))
        else:
            if branches and whole:
                done.outcome = "miss"
            chain = None
            resolution = CommitUpdate(before + accepted, [outcome.token])
        ended = executors.target.now()
        tuning.observe(done, ended - begun, lookups)
        begun = ended
        yield done
        begun += executors.target.now() - ended  # the reader's time is not the round's


def _without_draft(
    sequence: Sequence, executors: Executors, tuning: Tuning, replay: Replay
) -> Round:
    """A round with all cores for the target: what the text repeats is verified, or nothing."""
    executors.share_target(overlap=False)
    # While drafting is not turned off, these rounds are to say what plain decoding takes.
    chain = replay.chain(sequence.remaining - 1) if tuning.paused else []
    # No draft follows that H-RAD could judge: watching would cost time for nothing.
    verifying = executors.target.submit("verify", sequence.id, chain, None, (), (), False)
    outcome: Verification = verifying.result()
    done = commit(sequence, chain, outcome)
    done.retrieved = bool(chain)
    done.verification = verifying.span
    tuning.observe_plain(verifying.span, len(done.tokens))
    replay.observe(done.tokens)
    return done


def _plan(
    room: int, options: SpeculativeConfig, tuning: Tuning, signal: Signal | None
) -> BranchPlan:
    # Without a predictor nothing after a doubtful position would be kept: it need not be drafted.
    epsilon = options.epsilon if options.epsilon != "auto" and signal is None else 0.0
    return BranchPlan(
        room,
        tuning.gamma,
        options.branches,
        options.branching,
        epsilon,
        tuning.step,
        signal,
        options.retrieved,
    )


def _posterior(chain: Chain, rule: DraftLengthPolicy) -> tuple[Chain | None, int]:
    """The next chain, and how many tokens were pruned; None: nothing was drafted yet."""
    if not chain.tokens:
        return (chain if rule.reach is None else None), 0
    acceptance = chain.acceptance
    if rule.signal is not None and rule.signal.offsets and not chain.retrieved:
        acceptance = rule.signal.acceptance(chain.confidences)
    kept = rule.kept(acceptance)
    return chain.cut(kept), len(chain) - kept


def _of_branches(branches: list[Branch], winner: int | None, done: Round, committed: bool) -> Fates:
    """Fates of the branches, but for the survivor's continuation: the next round decides on that.

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
