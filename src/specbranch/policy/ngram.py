"""Drafting by n-gram lookup: a text that repeats itself is continued as it was the last time.

Prompt lookup decoding (Saxena 2023) proposes what followed an earlier occurrence of the last few
tokens. As in SuffixDecoding (Oliaro et al., arXiv 2411.04975), the longest match is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specbranch.policy.acceptance import Calibration
from specbranch.policy.latency import cumulative_acceptance

# Least cumulative acceptance of a proposed token. Drafting it is free, but verifying it is not.
MIN_CUMULATIVE_ACCEPTANCE = 0.1
LONGEST = 32  # tokens compared; a longer match is not more reliable
TRIED = 32  # latest occurrences compared


@dataclass(frozen=True)
class Match:
    """A continuation found earlier in the text.

    Attributes:
        length: number of the last tokens that were equal at the earlier occurrence.
        tokens: ids of the tokens that followed it, at least one.
    """

    length: int
    tokens: list[int]

    @property
    def strengths(self) -> list[float]:
        """Confidence in each token, between 0 and 1; a `Calibration` makes it a probability.

        The match of a token is longer by all tokens before it, because they are then right.
        """
        lengths = range(self.length, self.length + len(self.tokens))
        return [(n - 1) / (n + 1) for n in lengths]


@dataclass
class SuffixIndex:
    """A growing text, with the positions of each of its n-grams.

    Attributes:
        shortest: n, fewest tokens of a match.
        tokens: ids of the text.
    """

    shortest: int = 2
    tokens: list[int] = field(default_factory=list)
    _followed: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            position = len(self.tokens)
            if position >= self.shortest:  # an n-gram without a continuation is no match
                ngram = tuple(self.tokens[position - self.shortest :])
                self._followed.setdefault(ngram, []).append(position)
            self.tokens.append(token)

    def match(self, more: Sequence[int] = (), most: int = 16) -> Match | None:
        """The continuation of the longest earlier match of the text's end followed by `more`.

        Of equally long matches the latest is used. A continuation that reaches the end of the text
        is continued with itself, because loops repeat that way.

        Args:
            more: assumed tokens after the text.
            most: number of tokens to return.

        Returns:
            The match, or None where no n-gram repeats.
        """
        text = [*self.tokens, *more] if more else self.tokens
        length = len(text)
        if length <= self.shortest:
            return None
        best, longest = 0, 0
        for position in reversed(self._followed.get(tuple(text[-self.shortest :]), [])[-TRIED:]):
            n, limit = self.shortest, min(LONGEST, position)
            while n < limit and text[position - 1 - n] == text[length - 1 - n]:
                n += 1
            if n > longest:
                best, longest = position, n
        if not longest:
            return None
        found = text[best : best + most]
        for i in range(best + len(found), best + most):
            found.append(found[i - length])
        return Match(longest, found)


class NgramIndex:
    """A text's n-gram lookup, with an estimate of how often its proposals are right.

    Args:
        prompt: the first tokens of the text.
        calibration: acceptance by `Match.strengths`. It is updated by the committed tokens.
    """

    def __init__(self, prompt: Sequence[int], calibration: Calibration) -> None:
        self._suffixes = SuffixIndex()
        self._suffixes.extend(prompt)
        self._calibration = calibration

    @property
    def length(self) -> int:
        """Number of tokens of the text so far."""
        return len(self._suffixes.tokens)

    def learn(self, committed: Sequence[int]) -> None:
        """Append committed tokens, and update the calibration by what was proposed for each."""
        for token in committed:
            if match := self._suffixes.match(most=1):
                self._calibration.observe(match.strengths[0], match.tokens[0] == token)
            self._suffixes.extend([token])

    def continuation(
        self, more: Sequence[int], most: int, least: float, stop_ids: frozenset[int]
    ) -> Match | None:
        """The proposed continuation, as far as it is likely enough to be accepted.

        Args:
            more: assumed tokens after the text.
            most: most tokens to return.
            least: probability of acceptance of the first token below which there is no proposal.
            stop_ids: tokens that end a text. Nothing is proposed after one.
        """
        match = self._suffixes.match(more, most) if most > 0 else None
        if match is None:
            return None
        kept = self._kept(match, least, stop_ids)
        return Match(match.length, match.tokens[:kept]) if kept else None

    def _kept(self, match: Match, least: float, stop_ids: frozenset[int]) -> int:
        """How many tokens of a match are likely enough to be accepted."""
        acceptance = [self._calibration.estimate(value) for value in match.strengths]
        if acceptance[0] < least:
            return 0
        cumulative = cumulative_acceptance(acceptance)
        kept = sum(value >= MIN_CUMULATIVE_ACCEPTANCE for value in cumulative)
        ends = [i for i, token in enumerate(match.tokens, 1) if token in stop_ids]
        return min([kept, *ends])


@dataclass(frozen=True)
class Lookup:
    """A round of decoding by lookup alone.

    Attributes:
        chain: number of tokens verified.
        committed: number of tokens committed, with the target's own.
    """

    chain: int
    committed: int


class Replay(NgramIndex):
    """Decoding by lookup alone: the chain that it verifies next, and what it would have committed.

    The second is known whichever method decoded the text, because the text is the same. So no time
    is spent on trials.

    Args:
        prompt, calibration: as for `NgramIndex`.
        most: tokens of the longest chain.
        stop_ids: tokens that end a text.
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
        self._chain: list[int] | None = None  # of the unfinished round; None before it begins
        self._accepted = 0

    def chain(self, most: int) -> list[int]:
        """The chain to verify next. An unfinished round is dropped.

        Args:
            most: most tokens to return.
        """
        if self._chain is None or self._accepted:
            self._begin()
        assert self._chain is not None
        return self._chain[:most]

    def observe(self, committed: Sequence[int]) -> list[Lookup]:
        """Append committed tokens, and return the rounds that end with them."""
        ended = []
        for token in committed:
            if self._chain is None:
                self._begin()
            chain, position = self._chain or [], self._accepted
            expected = self._match.tokens[position : position + 1] if self._match else []
            self._suffixes.extend([token])
            if self._match and expected:
                self._calibration.observe(self._match.strengths[position], token == expected[0])
            if position < len(chain) and token == chain[position]:
                self._accepted += 1
            else:
                ended.append(Lookup(len(chain), position + 1))
                self._chain = None
        return ended

    def _begin(self) -> None:
        self._match = self._suffixes.match(most=self._most) if self._most else None
        kept = self._kept(self._match, 0.0, self._stop_ids) if self._match else 0
        self._chain = self._match.tokens[:kept] if self._match else []
        self._accepted = 0
