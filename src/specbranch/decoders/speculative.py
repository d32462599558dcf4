"""SpS: speculative decoding (Leviathan et al. 2023; Chen et al. 2023), draft and target in turn."""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.branching import KeepRule
from specbranch.decoders.base import Lanes, commit
from specbranch.metrics import Round
from specbranch.options import DecodingOptions
from specbranch.sequence import Sequence
from specbranch.workers.messages import Chain, Resolution, Verification

AUTO_GAMMA = 5  # nothing hides the draft's time here: a short chain, as other engines have it


def speculative(sequence: Sequence, lanes: Lanes, options: DecodingOptions) -> Iterator[Round]:
    """Draft γ tokens, verify them in one forward, keep what the target accepts and its own next."""
    assert lanes.draft is not None
    most = AUTO_GAMMA if options.gamma == "auto" else options.gamma
    resolution = Resolution(sequence.length)
    while not sequence.finished:
        gamma = min(most, sequence.remaining - 1)
        drafting = lanes.draft.submit("draft", sequence.id, resolution, gamma, KeepRule())
        chain: Chain = drafting.result()
        verifying = lanes.target.submit("verify", sequence.id, chain.tokens, chain.log_q)
        outcome: Verification = verifying.result()

        resolution = Resolution(sequence.length + outcome.accepted, [outcome.token])
        done = commit(sequence, chain.tokens, outcome)
        done.draft_stage = True
        done.drafting, done.verification = drafting.span, verifying.span
        yield done
