"""SpecBranch (Shen et al., arXiv 2506.01979): drafting on several branches beside verification.

The predictor's signal is s = 1 throughout (the confidence rule): drafting ends before the first
doubtful token. Branches prepare for the likeliest outcomes of the verification anywhere on the
chain (DESIGN §4b), or with ``branching="point"`` at its end alone, as in the paper.
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
        drafting = None
        if chain is None:
            gamma = min(options.gamma_at(lanes.pace), sequence.remaining - 1)
            drafting = lanes.draft.submit("draft", sequence.id, resolution, gamma, options.epsilon)
            chain = drafting.result()
            resolution = Resolution(sequence.length + len(chain.tokens))

        # Branch stage: both lanes at once.
        room = sequence.remaining - 1
        branching = lanes.draft.submit(
            "branch",
            sequence.id,
            resolution,
            options.gamma_at(lanes.pace),
            room,
            options.k_max,
            options.epsilon,
            options.branching == "outcomes",
        )
        verifying = lanes.target.submit("verify", sequence.id, chain.tokens, chain.log_q)
        if options.gamma == "auto":
            verifying.result()
            branching.stop()
        branches: list[Branch] = branching.result()
        outcome: Verification = verifying.result()
        lanes.pace.observe(verifying.span, branching.span)

        # Resolve
        accepted, whole = outcome.accepted, outcome.accepted == len(chain.tokens)
        winner = survivor([b.outcome for b in branches], (accepted, outcome.token))
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
            branching=branching.span if branches else None,
            verification=verifying.span,
        )
        used = min(accepted, committed)
        done.fates = Fates(
            accepted=used,
            in_flight=accepted - used,
            rolled_back=len(chain.tokens) - accepted,
        )
        done.fates += _of_branches(branches, winner, done, committed > accepted)
        if winner is not None:
            done.outcome = "hit"
            chain = branches[winner].chain
            resolution = Resolution(before + len(tokens) + len(chain.tokens), survivor=winner)
            if sequence.finished:
                done.fates += Fates(in_flight=len(chain.tokens))
        else:
            if branches or not whole:
                done.outcome = "miss" if whole else "rollback"
            chain = None
            resolution = Resolution(before + accepted, [outcome.token])
        yield done


def _of_branches(branches: list[Branch], winner: int | None, done: Round, committed: bool) -> Fates:
    """Fates of the branches, but for the survivor's continuation: the next round decides on that.

    The main path went through the likeliest branch at the end of the chain; it was rolled back if
    it was refuted. The other branches hedged against that.

    Args:
        committed: whether the survivor's candidate was; the text may have ended before it.
    """
    whole = done.accepted == done.chain
    at_end = [i for i, branch in enumerate(branches) if branch.accepted == done.chain]
    main = at_end[0] if at_end and (winner is None or not whole) else None
    fates = Fates()
    for i, branch in enumerate(branches):
        if i == winner:
            fates += Fates(accepted=1) if committed else Fates(in_flight=1)
        elif i == main:
            fates += Fates(rolled_back=len(branch))
        else:
            fates += Fates(hedged=len(branch))
    return fates
