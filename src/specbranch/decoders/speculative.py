"""SpS: speculative decoding (Leviathan et al. 2023; Chen et al. 2023), draft and target in turn."""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.branching import KeepRule
from specbranch.decoders.base import Lanes
from specbranch.metrics import Fates, Round
from specbranch.options import DecodingOptions
from specbranch.sequence import Origin, Sequence
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

        drafted, accepted = len(chain.tokens), outcome.accepted
        resolution = Resolution(sequence.length + accepted, [outcome.token])
        tokens = [*chain.tokens[:accepted], outcome.token]
        origins = [Origin.CHAIN] * accepted + [Origin.TARGET]
        committed = sequence.commit(tokens, origins)
        used = min(accepted, committed)
        yield Round(
            draft_stage=True,
            chain=drafted,
            accepted=accepted,
            outcome="rollback" if accepted < drafted else "end",
            tokens=tokens[:committed],
            origins=[*origins[:committed]],
            fates=Fates(accepted=used, rolled_back=drafted - accepted, in_flight=accepted - used),
            drafting=drafting.span,
            verification=verifying.span,
        )
