"""Incremental conversion of token ids to text, and detection of stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from specbranch.errors import InputError

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 5  # prompt tokens that precede the first generated one when it is decoded
CHARACTER = 4  # most tokens of one character: the bytes of its UTF-8 encoding
MOST_PENDING = 8  # tokens held back as a possible part of a character


@dataclass(frozen=True)
class TextOptions:
    """What is part of a text, under the names of `SamplingParams` or nearly so.

    Attributes:
        skip_special_tokens: special tokens are not.
        include_stop: the string or token that ends the text is.
        min_tokens: no stop string may end with one of the first so many tokens.
    """

    skip_special_tokens: bool = True
    include_stop: bool = False
    min_tokens: int = 0


DEFAULT = TextOptions()


class Detokenizer:
    """Converts the generated tokens of one request to text, one token at a time.

    Each step decodes a short window of tokens, as vLLM and TGI do: a token may hold only part of a
    character, and its leading space may depend on the token before it. The cost of a step does not
    depend on the length of the text.

    The text equals the tokenizer's `decode` of prompt and generated tokens, without the part that
    `decode` of the prompt gives already. A character that the prompt leaves incomplete belongs to
    the generated text. There is one exception: byte-fallback decoders replace a whole run of byte
    tokens if any byte of it is invalid, and complete characters have been released by then.

    Args:
        tokenizer: None produces no text.
        prompt: token ids of the prompt.
        stop: strings that end the text, which is cut before them. Text is held back while it may be
            the start of one. A string that is exactly a special token ends the text at that token,
            although special tokens are no part of the text.
        options: what is part of the text.

    Attributes:
        segments: the text that each token added, in order.
        text: the segments joined, cut before the stop string.
        ended: whether no more text will follow.
        stop_reason: the stop string that ended the text, if one did.

    Raises:
        InputError: stop strings without a tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        options: TextOptions = DEFAULT,
    ) -> None:
        if tokenizer is None and stop:
            raise InputError("stop strings need a tokenizer: use stop_token_ids")
        self._tokenizer = tokenizer
        self._options = options
        self._special = {} if tokenizer is None else _special_tokens(tokenizer)
        self._skipped = self._special if options.skip_special_tokens else {}
        special = set(self._special.values())
        self._stop_tokens = {s for s in stop if s in special}
        self._stop = [s for s in stop if s not in special]
        self._hold = max((len(s) - 1 for s in self._stop), default=0)
        self._unsearched = 0  # characters in which no stop string may end
        self._start_window([token for token in prompt if token not in self._skipped])
        self._segment = 0  # the first one that is not wholly released
        self._offset = 0  # its place in the text
        self._released = 0
        self.segments: list[str] = []
        self.text = ""
        self.ended = False
        self.stop_reason: str | None = None

    def _start_window(self, prompt: list[int]) -> None:
        """Set the window to the end of the prompt, split between characters.

        Tokens before `_read` are context, whose text is known; those after it are pending.
        """
        self._ids: list[int] = prompt[-CONTEXT - 2 * CHARACTER :]
        self._read = end = len(self._ids)
        self._shown = self._known = ""
        if self._tokenizer is None:
            return
        # Nothing is readable to a byte-fallback decoder that begins within a character.
        spans = (
            (start, read)
            for read in range(end, max(-1, end - CHARACTER), -1)
            for start in range(max(0, read - CONTEXT), max(-1, read - CONTEXT - CHARACTER), -1)
        )
        readable = (span for span in spans if not self._decode(*span).endswith(INCOMPLETE))
        # After invalid bytes only the last ones can still become a character.
        start, self._read = next(readable, (0, max(0, end - CHARACTER + 1)))
        # What the prompt shows of the character that it leaves incomplete.
        self._shown = self._decode(self._read)
        self._drop(start)

    def _decode(self, start: int, end: int | None = None) -> str:
        assert self._tokenizer is not None
        text: str = self._tokenizer.decode(
            self._ids[start:end],
            skip_special_tokens=self._options.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

    def _drop(self, count: int) -> None:
        """Drop tokens from the front of the window, and decode its context."""
        del self._ids[:count]
        self._read -= count
        self._known = self._decode(0, self._read)

    def push(self, token: int) -> bool:
        """Add a token; True if the text now contains a stop string, which it is cut before."""
        self.segments.append("")
        special = self._special.get(token)
        if special in self._stop_tokens and self._may_stop:
            self.finish()
            self.stop_reason = special
            if self._options.include_stop and special is not None:
                self.segments[-1] += special
                self.text += special
        elif self._tokenizer is not None and token not in self._skipped:
            self._ids.append(token)
            self._append(self._complete_text())
        if not self._may_stop:
            self._unsearched = len(self.text)
        return self.ended

    def push_stop(self, token: int) -> None:
        """Add the stop token that ended the text, if that is part of it."""
        if self._options.include_stop:
            self.push(token)

    @property
    def _may_stop(self) -> bool:
        """Whether a stop string may end with the latest token."""
        return len(self.segments) > self._options.min_tokens

    def _complete_text(self) -> str:
        """The text of the pending tokens, once no character of it is incomplete."""
        end, whole = len(self._ids), self._decode(0)
        if not whole.endswith(INCOMPLETE) and len(whole) > len(self._known):
            return self._advance(end, whole)
        if end - self._read < MOST_PENDING:
            return ""
        # Of a longer run only the last bytes can still become a character.
        for split in range(end - CHARACTER + 1, end - 2 * CHARACTER + 1, -1):
            if whole.startswith(text := self._decode(0, split)):
                return self._advance(split, text)
        return self._advance(end, whole)

    def _advance(self, end: int, whole: str) -> str:
        """Make the pending tokens before `end` the context; returns their text.

        Args:
            whole: text of the window up to there.
        """
        new = whole[len(self._known) :]
        if not whole.startswith(self._known):
            # Invalid bytes follow the context, and a byte-fallback decoder replaces both.
            new = self._decode(self._read, end)
        if self._shown:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(new, self._shown, strict=False))
            new = new[len(list(same)) :]
            self._shown = ""
        read, self._read = self._read, end
        self._drop(read)
        return new

    def _append(self, new: str) -> None:
        """Add text to the last segment, and cut before the stop string that is complete first."""
        searched_from = max(0, len(self.text) - self._hold)
        self.segments[-1] += new
        self.text += new
        if not self._may_stop:
            return
        found = []
        for stop in self._stop:
            first = max(searched_from, self._unsearched - len(stop) + 1)
            if (start := self.text.find(stop, first)) >= 0:
                found.append((start + len(stop), start, stop))
        if found:
            end, start, self.stop_reason = min(found)
            self.text = self.text[: end if self._options.include_stop else start]
            self.ended = True

    def text_of(self, token: int) -> str | None:
        """A token alone as text; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        text: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return text

    def finish(self) -> None:
        """End the text: nothing is held back any longer, not even an incomplete character."""
        if not self.ended and self.segments and self._tokenizer is not None:
            self._append(self._advance(len(self._ids), self._decode(0)))
        self.ended = True

    def release(self) -> Iterator[tuple[int, str]]:
        """Yield new text that is final, as (index of its token, text), in order.

        A token's text comes in several parts where a stop string could begin within it.
        """
        end = len(self.text) if self.ended else len(self.text) - self._hold
        while self._segment < len(self.segments):
            stop = self._offset + len(self.segments[self._segment])
            start, final = max(self._offset, self._released), min(stop, end)
            if start < final:
                self._released = final
                yield self._segment, self.text[start:final]
            # The last segment may still grow.
            if final < stop or self._segment == len(self.segments) - 1:
                return
            self._segment += 1
            self._offset = stop


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that `decode` skips, by id."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {token: str(entry.content) for token, entry in added.items() if entry.special}
