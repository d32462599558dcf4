"""Plain decoding: one token per target forward. What every other method must reproduce."""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.config import SpeculativeConfig
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Round
from specbranch.sequence import Sequence
from specbranch.workers.messages import Verification


def autoregressive(
    sequence: Sequence, executors: Executors, options: SpeculativeConfig
) -> Iterator[Round]:
    """Verify an empty chain, again and again."""
    while not sequence.finished:
        verifying = executors.target.submit("verify", sequence.id, [])
        outcome: Verification = verifying.result()
        done = commit(sequence, [], outcome)
        done.verification = verifying.span
        yield done
