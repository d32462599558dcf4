"""One text being generated: its tokens, where each came from, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from specbranch.logprobs import PlaceLogprobs


class Origin(StrEnum):
    """Which guess, if any, a committed token comes from."""

    CHAIN = "chain"  # drafted before the verification that accepted it
    BRANCH = "branch"  # the surviving branch's candidate
    TARGET = "target"  # the target's own


class FinishReason(StrEnum):
    """Why generation ended; the values are vLLM's."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass
class TokenSequence:
    """The committed text of one request.

    Attributes:
        id: the name of the sequence on every executor.
        prompt: token ids.
        max_tokens: most tokens to generate, the context limit considered.
        stop_ids: tokens that end the text when they are committed; they are part of it.
        logprobs: of each generated token, where they were asked for.
        forced: tokens that the grammar of the text, if it has one, leaves no choice about next.
        ends_text: called with all generated tokens after each one; true ends the text there.
    """

    id: int
    prompt: list[int]
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    ends_text: Callable[[list[int]], bool] = lambda tokens: False
    tokens: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[PlaceLogprobs] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def length(self) -> int:
        """Tokens of the text, prompt included."""
        return len(self.prompt) + len(self.tokens)

    @property
    def remaining(self) -> int:
        """How many tokens may still be generated."""
        return self.max_tokens - len(self.tokens)

    def commit(self, tokens: list[int], origins: list[Origin]) -> int:
        """Append tokens up to and including the first that ends the text.

        Returns:
            How many were appended; nothing after the end gets in.
        """
        for count, (token, origin) in enumerate(zip(tokens, origins, strict=True), start=1):
            self.tokens.append(token)
            self.origins.append(origin)
            if token in self.stop_ids or self.ends_text(self.tokens):
                self.finish_reason = FinishReason.STOP
            elif self.remaining == 0:
                self.finish_reason = FinishReason.LENGTH
            if self.finished:
                return count
        return len(tokens)
