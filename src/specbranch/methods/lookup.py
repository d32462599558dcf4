"""Prompt lookup decoding (Saxena 2023): the text itself is the draft, and no draft model runs.

Where the last three tokens, or two, or one, occurred before, what followed them is the chain, as in
`transformers`' ``prompt_lookup_num_tokens``. Of several places that takes the first; here it is the
one that was alike for longest, and then the latest.
"""

from __future__ import annotations

from collections.abc import Iterator

from specbranch.config import SpeculativeConfig
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Round
from specbranch.policy.ngram import SuffixIndex
from specbranch.sequence import Sequence
from specbranch.workers.messages import Verification

NGRAMS = (3, 2, 1)  # Saxena's; the longest first
AUTO_GAMMA = 10  # likewise


def lookup(sequence: Sequence, executors: Executors, options: SpeculativeConfig) -> Iterator[Round]:
    """Verify what followed the end of the text the last time; nothing, where that is new."""
    most = AUTO_GAMMA if options.gamma == "auto" else options.gamma
    indexes = [SuffixIndex(shortest) for shortest in NGRAMS]
    for index in indexes:
        index.extend(sequence.prompt)
    while not sequence.finished:
        chain = _found(indexes, min(most, sequence.remaining - 1))
        # These tokens are no sample of a distribution: the target matches them with its own.
        verifying = executors.target.submit("verify", sequence.id, chain)
        outcome: Verification = verifying.result()
        done = commit(sequence, chain, outcome)
        done.verification = verifying.span
        for index in indexes:
            index.extend(done.tokens)
        yield done


def _found(indexes: list[SuffixIndex], most: int) -> list[int]:
    """What followed the longest n-gram that ends the text, at most so many tokens."""
    if most < 1:
        return []
    matches = (index.match(most=most) for index in indexes)
    return next((match.tokens for match in matches if match is not None), [])
