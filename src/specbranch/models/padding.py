"""Query lengths of the target's forwards, padded where bit-exactness needs it.

A kernel may round a token's logits differently for different numbers of tokens in a forward. Where
a machine's kernels do not (they are *batch-invariant*), a chain is verified at its own length.
Elsewhere every forward is padded to one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FIXED_QUERY_LENGTH = 16  # holds a chain of 15 tokens
MAX_QUERY_LENGTH = 24  # most tokens with which kernels are tried for batch invariance

# What a user may ask for: see `LLM`.
PaddingOption = int | None | Literal["auto"]


@dataclass(frozen=True)
class Padding:
    """Bounds on the query length of a forward, in tokens.

    Attributes:
        least: shorter forwards are padded to it.
        most: longer forwards are split; None if none are.
        aligned: every token attends over whole blocks of the cache, as many as its position needs.
            The length of the attention then does not depend on the tokens run with it.
    """

    least: int = 1
    most: int | None = None
    aligned: bool = False

    @classmethod
    def fixed(cls, tokens: int) -> Padding:
        """Every forward has exactly that many tokens, so that the same kernels run."""
        return cls(tokens, tokens, aligned=True)

    @classmethod
    def pick(
        cls, asked: PaddingOption, invariant_from: int | None, states: bool = False
    ) -> Padding:
        """The padding for a user's option; `auto` is the cheapest bit-exact one.

        Args:
            asked: the option: None, a number of tokens, or `auto`.
            invariant_from: fewest tokens from which on, and up to `MAX_QUERY_LENGTH`, the kernels
                are batch-invariant; None if they are not, or not known to be.
            states: the model has recurrent layers, whose states would take in padding.
        """
        if asked is None or (asked == "auto" and states):
            return NATURAL
        if asked != "auto":
            return cls.fixed(asked)
        if invariant_from is None:
            return cls.fixed(FIXED_QUERY_LENGTH)
        return cls(invariant_from, MAX_QUERY_LENGTH, aligned=True)

    def __str__(self) -> str:
        if not self.aligned:
            return "natural widths: exact up to rounding"
        if self.most == self.least:
            return f"{self.most} tokens a target forward: bit-exact"
        least = f" of {self.least} tokens or more" if self.least > 1 else ""
        return f"batch-invariant kernels{least}: bit-exact"


NATURAL = Padding()
