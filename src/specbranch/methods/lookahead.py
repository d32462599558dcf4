"""Lookahead decoding (Fu et al., arXiv 2402.02057): the target drafts for itself, beside verifying.

Every forward also runs a *window*: guesses of the next W tokens, as N − 1 earlier forwards made
them, each row from the one before (Jacobi iteration). A column of it and the guess that it leads to
are an n-gram the target might write. The n-grams are kept by their first token, and the latest that
starts with the last committed token is the chain to verify.

The paper verifies up to G such n-grams in one forward. Here G is 1: logits that decide are those of
the trunk's own slots, which makes them bit-identical to plain decoding's (DESIGN §5), and there is
one chain in these. W and N are such that all of it fits a forward of 16 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from specbranch.config import SpeculativeConfig
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Round
from specbranch.models.runner import LookaheadRow
from specbranch.sequence import Sequence
from specbranch.workers.messages import Verification

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


def lookahead(
    sequence: Sequence, executors: Executors, options: SpeculativeConfig
) -> Iterator[Round]:
    """Verify the n-gram at hand, and look ahead for more in the same forward."""
    most = NGRAM - 1 if options.gamma == "auto" else options.gamma
    # The window has to begin with something; the paper's code takes tokens of the prompt, too.
    prompt = sequence.prompt
    window = Window([[prompt[j % len(prompt)] for j in range(WINDOW)]])
    last = prompt[-1]
    while not sequence.finished:
        chain = window.ngrams.get(last, [])[: min(most, sequence.remaining - 1)]
        lookahead_rows = window.lookahead_rows(sequence.length)
        verifying = executors.target.submit("verify", sequence.id, chain, None, lookahead_rows)
        outcome: Verification = verifying.result()
        if outcome.guesses:
            window.observe(outcome.guesses[-WINDOW:])
        done = commit(sequence, chain, outcome)
        done.verification = verifying.span
        last = outcome.token
        yield done
