"""Drafting by lookup: a text that repeats itself will go on as it did the last time.

Prompt lookup decoding (Saxena 2023) takes what followed the last few tokens earlier in the text;
as in SuffixDecoding (Oliaro et al., arXiv 2411.04975) the longest match is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specbranch.calibration import Calibration
from specbranch.costmodel import reaches

LEAST_REACH = 0.1  # of a token to return: it costs nothing to draft, but something to verify
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

    @property
    def strengths(self) -> list[float]:
        """How far each token can be relied on, between 0 and 1; not yet a probability.

        If the tokens before it are right, a token belongs to a match that is longer by them.
        """
        lengths = range(self.length, self.length + len(self.tokens))
        return [(n - 1) / (n + 1) for n in lengths]


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
        known, count = self.tokens, len(self.tokens)
        length = count + len(more)

        def at(place: int) -> int:
            return known[place] if place < count else more[place - count]

        if length <= self.shortest:
            return None
        gram = tuple(at(length - self.shortest + i) for i in range(self.shortest))
        best, longest = 0, 0
        for place in reversed(self._followed.get(gram, [])[-TRIED:]):
            n = self.shortest
            while n < min(LONGEST, place) and at(place - 1 - n) == at(length - 1 - n):
                n += 1
            if n > longest:
                best, longest = place, n
        if not longest:
            return None
        found: list[int] = []
        for i in range(best, best + most):
            found.append(at(i) if i < length else found[i - length])
        return Match(longest, found)


class Retrieval:
    """What a text repeats, and how far that can be relied on.

    Args:
        prompt: the text's first tokens.
        calibration: acceptance by `Match.strengths`; learned on, from what is committed.
    """

    def __init__(self, prompt: Sequence[int], calibration: Calibration) -> None:
        self._suffixes = Suffixes()
        self._suffixes.extend(prompt)
        self._calibration = calibration

    @property
    def length(self) -> int:
        """Tokens of the text so far."""
        return len(self._suffixes.tokens)

    def learn(self, committed: Sequence[int]) -> None:
        """Append tokens to the text, and see whether it would have been right about them."""
        for token in committed:
            if match := self._suffixes.match(most=1):
                self._calibration.observe(match.strengths[0], match.tokens[0] == token)
            self._suffixes.extend([token])

    def continuation(
        self, more: Sequence[int], most: int, least: float, stop_ids: frozenset[int]
    ) -> Match | None:
        """What followed the last time, as far as it is likely to again.

        Args:
            more: tokens that follow the text, perhaps.
            most: tokens to return.
            least: probability of acceptance of the first one, below which there is nothing.
            stop_ids: tokens after which a text ends.
        """
        match = self._suffixes.match(more, most) if most > 0 else None
        if match is None:
            return None
        acceptance = [self._calibration.estimate(value) for value in match.strengths]
        kept = sum(reach >= LEAST_REACH for reach in reaches(acceptance))
        if not kept or acceptance[0] < least:
            return None
        ends = [i for i, token in enumerate(match.tokens, 1) if token in stop_ids]
        return Match(match.length, match.tokens[: min([kept, *ends])])
