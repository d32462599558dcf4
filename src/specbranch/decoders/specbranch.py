"""SpecBranch (Shen et al., arXiv 2506.01979): drafting on several branches beside verification.

The predictor's signal is s = 1 throughout (the confidence rule): drafting ends before the first
doubtful token, which becomes the branch point.
"""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.branching import survivor
from specbranch.decoders.base import DecodingOptions, Lanes
from specbranch.metrics import Fates, Round
from specbranch.sequence import Origin, Sequence
from specbranch.workers.messages import Branch, Chain, Resolution, Verification


def specbranch(sequence: Sequence, lanes: Lanes, options: DecodingOptions) -> Iterator[Round]:
    """Rounds of (verify ‖ branch); a draft stage only where no branch survived (paper §4-5)."""
    assert lanes.draft is not None
    resolution = Resolution(sequence.length)
    chain: Chain | None = None
    while not sequence.finished:
        drafting = branching = None
        if chain is None:
            gamma = min(options.gamma_at(lanes.pace), sequence.remaining - 1)
            drafting = lanes.draft.submit("draft", sequence.id, resolution, gamma, options.epsilon)
            chain = drafting.result()
            resolution = Resolution(sequence.length + len(chain.tokens))

        # Branch stage: both lanes at once. Branches serve only if text follows the branch point.
        after_branch_point = sequence.remaining - len(chain.tokens) - 1
        ends = bool(chain.tokens) and chain.tokens[-1] in sequence.stop_ids
        if after_branch_point > 0 and not ends:
            gamma = min(options.gamma_at(lanes.pace), after_branch_point - 1)
            branching = lanes.draft.submit(
                "branch", sequence.id, resolution, gamma, options.k_max, options.epsilon
            )
        verifying = lanes.target.submit("verify", sequence.id, chain.tokens, chain.log_q)
        if branching and options.gamma == "auto":
            verifying.result()
            branching.stop()
        branches: list[Branch] = branching.result() if branching else []
        outcome: Verification = verifying.result()
        lanes.pace.observe(verifying.span, branching.span if branching else None)

        # Resolve
        accepted, whole = outcome.accepted, outcome.accepted == len(chain.tokens)
        winner = survivor([b.candidate for b in branches], outcome.token) if whole else None
        tokens = [*chain.tokens[:accepted], outcome.token]
        last = Origin.TARGET if winner is None else Origin.BRANCH
        origins = [Origin.CHAIN] * accepted + [last]
        before = sequence.length
        committed = sequence.commit(tokens, origins)
        done = Round(
            draft_stage=drafting is not None,
            chain=len(chain.tokens),
            branches=len(branches),
            branch_tokens=sum(map(len, branches)),
            accepted=accepted,
            tokens=tokens[:committed],
            origins=[*origins[:committed]],
            drafting=drafting.span if drafting else None,
            branching=branching.span if branching else None,
            verification=verifying.span,
        )
        used = min(accepted, committed)
        done.fates = Fates(
            accepted=used,
            in_flight=accepted - used,
            rolled_back=len(chain.tokens) - accepted,
        )
        if winner is not None:
            done.outcome = "hit"
            done.fates += _survival(branches, winner, committed > accepted, sequence.finished)
            chain = branches[winner].chain
            resolution = Resolution(before + len(tokens) + len(chain.tokens), survivor=winner)
        else:
            if branches:
                done.outcome = "miss" if whole else "rollback"
                # The likeliest branch was the path drafted on; the others hedged against it.
                main, *others = map(len, branches)
                done.fates += Fates(rolled_back=main, hedged=sum(others))
            elif not whole:
                done.outcome = "rollback"
            chain = None
            resolution = Resolution(before + accepted, [outcome.token])
        yield done


def _survival(branches: list[Branch], winner: int, committed: bool, finished: bool) -> Fates:
    """Fates that a surviving branch decides: its candidate's, and those of the other branches.

    Its continuation is the next chain, which a later round decides, unless generation is over.
    """
    fates = Fates(hedged=sum(map(len, branches)) - len(branches[winner]))
    fates += Fates(accepted=1) if committed else Fates(in_flight=1)
    if finished:
        fates += Fates(in_flight=len(branches[winner].chain.tokens))
    return fates
