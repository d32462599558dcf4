"""Drafting by lookup: a text that repeats itself will go on as it did the last time.

Prompt lookup decoding (Saxena 2023) takes what followed the last few tokens earlier in the text;
as in SuffixDecoding (Oliaro et al., arXiv 2411.04975) the longest match is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specbranch.policy.acceptance import Calibration
from specbranch.policy.latency import cumulative_acceptance

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
class SuffixIndex:
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
        text = [*self.tokens, *more] if more else self.tokens
        length = len(text)
        if length <= self.shortest:
            return None
        best, longest = 0, 0
        for place in reversed(self._followed.get(tuple(text[-self.shortest :]), [])[-TRIED:]):
            n, most_equal = self.shortest, min(LONGEST, place)
            while n < most_equal and text[place - 1 - n] == text[length - 1 - n]:
                n += 1
            if n > longest:
                best, longest = place, n
        if not longest:
            return None
        found = text[best : best + most]
        for i in range(best + len(found), best + most):
            found.append(found[i - length])
        return Match(longest, found)


class NgramIndex:
    """What a text repeats, and how far that can be relied on.

    Args:
        prompt: the text's first tokens.
        calibration: acceptance by `Match.strengths`; learned on, from what is committed.
    """

    def __init__(self, prompt: Sequence[int], calibration: Calibration) -> None:
        self._suffixes = SuffixIndex()
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
        kept = self._kept(match, least, stop_ids)
        return Match(match.length, match.tokens[:kept]) if kept else None

    def _kept(self, match: Match, least: float, stop_ids: frozenset[int]) -> int:
        """How many of its tokens are likely enough."""
        acceptance = [self._calibration.estimate(value) for value in match.strengths]
        if acceptance[0] < least:
            return 0
        kept = sum(reach >= LEAST_REACH for reach in cumulative_acceptance(acceptance))
        ends = [i for i, token in enumerate(match.tokens, 1) if token in stop_ids]
        return min([kept, *ends])


@dataclass(frozen=True)
class Lookup:
    """A round of decoding by lookup alone.

    Attributes:
        chain: tokens verified.
        committed: tokens, the target's own included.
    """

    chain: int
    committed: int


class Replay(NgramIndex):
    """Decoding by lookup alone: what it would verify next, and what it would have committed.

    That is known whatever decoded the text, because the text is the same: no trial need be made.

    Args:
        prompt, calibration: of `NgramIndex`.
        most: tokens of the longest chain.
        stop_ids: tokens after which a text ends.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        calibration: Calibration,
        most: int,
        stop_ids: frozenset[int],
    ) -> None:
        super().__init__(prompt, calibration)
        self._most, self._stop_ids = most, stop_ids
        self._match: Match | None = None
        self._chain: list[int] | None = None  # of the round under way
        self._accepted = 0

    def chain(self, most: int) -> list[int]:
        """What to verify next, at most so many tokens. A round under way is forgotten."""
        if self._chain is None or self._accepted:
            self._begin()
        assert self._chain is not None
        return self._chain[:most]

    def observe(self, committed: Sequence[int]) -> list[Lookup]:
        """Append tokens to the text; returns the rounds that end with them."""
        ended = []
        for token in committed:
            if self._chain is None:
                self._begin()
            chain, place = self._chain or [], self._accepted
            expected = self._match.tokens[place : place + 1] if self._match else []
            self._suffixes.extend([token])
            if self._match and expected:
                self._calibration.observe(self._match.strengths[place], token == expected[0])
            if place < len(chain) and token == chain[place]:
                self._accepted += 1
            else:
                ended.append(Lookup(len(chain), place + 1))
                self._chain = None
        return ended

    def _begin(self) -> None:
        self._match = self._suffixes.match(most=self._most) if self._most else None
        kept = self._kept(self._match, 0.0, self._stop_ids) if self._match else 0
        self._chain = self._match.tokens[:kept] if self._match else []
        self._accepted = 0
