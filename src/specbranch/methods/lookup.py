"""Prompt lookup decoding (Saxena 2023): the text itself is the draft, and no draft model runs.

Where the last three tokens, or two, or one, occurred before, what followed them is the chain, as in
`transformers`' ``prompt_lookup_num_tokens``. Of several places that takes the first; here it is the
one that was alike for longest, and then the latest.
"""

from __future__ import annotations

from specbranch.methods.base import Method, MethodContext, VerifyPlan, commit
from specbranch.metrics import Round
from specbranch.policy.ngram import SuffixIndex
from specbranch.workers.messages import VerifyResult, VerifyText

NGRAMS = (3, 2, 1)  # Saxena's; the longest first
AUTO_GAMMA = 10  # likewise


class Lookup(Method):
    """Verifies what followed the end of the text the last time; nothing, where that is new."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        gamma = context.config.gamma
        self._gamma = AUTO_GAMMA if gamma == "auto" else gamma
        self._indexes = [SuffixIndex(shortest) for shortest in NGRAMS]
        self._extend(self.sequence.prompt)
        self._chain: list[int] = []

    def plan(self) -> VerifyPlan:
        most = min(self._gamma, self.sequence.remaining - 1)
        self._chain = self.sequence.forced[:most] or self._match(most)
        # These tokens are no sample of a distribution: the target matches them with its own.
        return VerifyPlan(VerifyText(self.sequence.id, self._chain))

    def absorb_verification(self, result: VerifyResult) -> Round:
        done = commit(self.sequence, self._chain, result)
        self._extend(done.tokens)
        return done

    def _extend(self, tokens: list[int]) -> None:
        for index in self._indexes:
            index.extend(tokens)

    def _match(self, most: int) -> list[int]:
        """What followed the longest n-gram that ends the text, at most so many tokens."""
        if most < 1:
            return []
        matches = (index.match(most=most) for index in self._indexes)
        return next((match.tokens for match in matches if match is not None), [])
