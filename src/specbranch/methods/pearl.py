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

from collections.abc import Iterator

from specbranch.config import MOST_GAMMA, SpeculativeConfig
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Fates, Round
from specbranch.sequence import Origin, Sequence
from specbranch.workers.messages import Branch, BranchPlan, Chain, CommitUpdate, Verification

NOTHING = Chain([], [], [])


def pearl(sequence: Sequence, executors: Executors, options: SpeculativeConfig) -> Iterator[Round]:
    """Rounds of (verify ‖ draft), and never one after the other.

    With γ = auto the draft goes on until the verification is done, which makes γ the ratio of the
    models' speeds, the paper's choice.
    """
    assert executors.draft is not None
    executors.share_target(overlap=True)
    most = MOST_GAMMA if options.gamma == "auto" else options.gamma
    waiting = NOTHING  # pre-verify; post-verify while there is something
    resolution = CommitUpdate(sequence.length)
    while not sequence.finished:
        plan = BranchPlan(sequence.remaining - 1, most - 1, k_max=1, branching="point")
        drafting = executors.draft.submit("branch", sequence.id, resolution, plan)
        verifying = executors.target.submit("verify", sequence.id, waiting.tokens, waiting.log_q)
        if options.gamma == "auto":
            verifying.result()
            drafting.stop()
        branches: list[Branch] = drafting.result()
        outcome: Verification = verifying.result()

        drafted = branches[0] if branches else None
        kept = drafted is not None and drafted.outcome == (outcome.accepted, outcome.token)
        valid = sequence.length + outcome.accepted
        done = commit(sequence, waiting.tokens, outcome, Origin.BRANCH if kept else Origin.TARGET)
        if drafted is not None and kept:
            done.outcome = "hit"
            first = len(done.tokens) > outcome.accepted  # the text may have ended before it
            done.fates += Fates(accepted=1) if first else Fates(in_flight=1)
            waiting = drafted.chain
            resolution = CommitUpdate(valid + len(drafted), survivor=0)
            if sequence.finished:
                done.fates += Fates(in_flight=len(waiting))
        else:
            if drafted is not None:
                done.outcome = "miss" if outcome.accepted == len(waiting) else "rollback"
                done.fates += Fates(rolled_back=len(drafted))
            waiting = NOTHING
            resolution = CommitUpdate(valid, [outcome.token])
        done.branches, done.branch_tokens = len(branches), sum(map(len, branches))
        done.branching = drafting.span if branches else None
        done.verification = verifying.span
        yield done
