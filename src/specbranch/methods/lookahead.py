"""Lookahead decoding (Fu et al., arXiv 2402.02057): the target drafts for itself, beside verifying.

Every forward also runs a *window*: guesses of the next W tokens, as N − 1 earlier forwards made
them, each row from the one before (Jacobi iteration). A column of it and the guess that it leads to
are an n-gram the target might write. The n-grams are kept by their first token, and the latest that
starts with the last committed token is the chain to verify.

The paper verifies up to G such n-grams in one forward. Here G is 1: logits that decide are those of
the committed prefix's own slots, which makes them bit-identical to plain decoding's
(docs/exactness.md), and there is one chain in these. W and N are such that all of it fits a
forward of 16 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from specbranch.methods.base import Method, MethodContext, VerifyPlan, commit
from specbranch.metrics import Round
from specbranch.models.sequence_state import LookaheadRow
from specbranch.workers.messages import VerifyResult, VerifyText

WINDOW = 4  # W
NGRAM = 4  # N


@dataclass
class Window:
    """The two-dimensional window, and the n-grams that came of it.

    Attributes:
        rows: one to N − 1 of W tokens, the oldest first; a token is the guess of what follows the
            one above it.
        ngrams: the latest N − 1 tokens guessed after a token.
    """

    rows: list[list[int]]
    ngrams: dict[int, list[int]] = field(default_factory=dict)

    def lookahead_rows(self, length: int) -> list[LookaheadRow]:
        """The window's tokens for a forward after a text of that many tokens.

        Each sees the first row up to its column, and its column down to itself.
        """
        return [
            LookaheadRow(token, length + j + i, [*range(j), *(k * WINDOW + j for k in range(i))])
            for i, row in enumerate(self.rows)
            for j, token in enumerate(row)
        ]

    def observe(self, guesses: list[int]) -> None:
        """Take in what the target would write after each token of the last row."""
        if len(self.rows) == NGRAM - 1:
            for first, *rest in zip(*self.rows, guesses, strict=True):
                self.ngrams[first] = rest
            del self.rows[0]
        self.rows.append(guesses)


class Lookahead(Method):
    """Verifies the n-gram at hand, and looks ahead for more in the same forward."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        gamma = context.config.gamma
        self._gamma = NGRAM - 1 if gamma == "auto" else gamma
        # The window has to begin with something; the paper's code takes tokens of the prompt, too.
        prompt = self.sequence.prompt
        self._window = Window([[prompt[j % len(prompt)] for j in range(WINDOW)]])
        self._last = prompt[-1]
        self._chain: list[int] = []

    def plan(self) -> VerifyPlan:
        likely = self.sequence.forced or self._window.ngrams.get(self._last, [])
        self._chain = likely[: min(self._gamma, self.sequence.remaining - 1)]
        rows = self._window.lookahead_rows(self.sequence.length)
        return VerifyPlan(VerifyText(self.sequence.id, self._chain, lookahead_rows=rows))

    def absorb_verification(self, result: VerifyResult) -> Round:
        if result.guesses:
            self._window.observe(result.guesses[-WINDOW:])
        self._last = result.token
        return commit(self.sequence, self._chain, result)
