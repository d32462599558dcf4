"""Plain decoding: one token per target forward. What every other method must reproduce."""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.decoders.base import Lanes
from specbranch.metrics import Round
from specbranch.options import DecodingOptions
from specbranch.sequence import Origin, Sequence
from specbranch.workers.messages import Verification


def autoregressive(sequence: Sequence, lanes: Lanes, options: DecodingOptions) -> Iterator[Round]:
    """Verify an empty chain, again and again."""
    while not sequence.finished:
        verifying = lanes.target.submit("verify", sequence.id, [])
        outcome: Verification = verifying.result()
        sequence.commit([outcome.token], [Origin.TARGET])
        yield Round(tokens=[outcome.token], origins=[Origin.TARGET], verification=verifying.span)
