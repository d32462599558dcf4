"""Drafting by lookup: a text that repeats itself will go on as it did the last time.

Prompt lookup decoding (Saxena 2023) takes what followed the last few tokens earlier in the text;
as in SuffixDecoding (Oliaro et al., arXiv 2411.04975) the longest match is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST = 32  # tokens; a longer match says no more
TRIED = 32  # places looked at, the latest ones


@dataclass(frozen=True)
class Match:
    """What followed the last time.

    Attributes:
        length: how many of the last tokens were the same there.
        tokens: what came after them, at least one token.
    """

    length: int
    tokens: list[int]


@dataclass
class Suffixes:
    """A text that grows, and where in it each n-gram was.

    Attributes:
        shortest: n, fewest tokens of a match.
    """

    shortest: int = 2
    tokens: list[int] = field(default_factory=list)
    _followed: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            place = len(self.tokens)
            if place >= self.shortest:  # only what something followed can be a match
                gram = tuple(self.tokens[place - self.shortest :])
                self._followed.setdefault(gram, []).append(place)
            self.tokens.append(token)

    def match(self, more: Sequence[int] = (), most: int = 16) -> Match | None:
        """How the text went on where it was most like the end of text and `more` together.

        Among equally long matches the latest counts. One that runs into the end of the text goes
        on with itself, as loops do.

        Args:
            more: tokens that follow the text, perhaps.
            most: tokens to return.
        """
        path = [*self.tokens, *more]
        places = self._followed.get(tuple(path[-self.shortest :]), [])
        best, length = 0, 0
        for place in reversed(places[-TRIED:]):
            n = self.shortest
            while n < min(LONGEST, place) and path[place - 1 - n] == path[len(path) - 1 - n]:
                n += 1
            if n > length:
                best, length = place, n
        if not length:
            return None
        for i in range(most):
            path.append(path[best + i])
        return Match(length, path[-most:])
