"""How likely tokens were, in vLLM's shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logprob:
    """How likely the target found a token at a place of a text.

    Attributes:
        logprob: natural logarithm of the probability that the model gives the token, before any
            processor, temperature or top-k.
        rank: 1 is the likeliest token of the vocabulary.
        decoded_token: the token as text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


# Of one place by token id: the token that stands there first, then the likeliest ones.
PlaceLogprobs = dict[int, Logprob]
