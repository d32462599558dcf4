"""Token ids to text, as they come, and the strings that end it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase


class Detokenizer:
    """The text of the generated tokens, token by token.

    Text is decoded with a few tokens of context, as vLLM and TGI do it: a token may hold part of a
    character, and its spaces may depend on the token before.

    Args:
        prompt: ids of the prompt.
        stop: strings that end the text; held back until it is sure that they do not begin there.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-5:])
        self._context = 0
        self._read = len(self._ids)
        self._stop = stop
        self._hold = max((len(s) - 1 for s in stop), default=0)
        self._released = 0
        self.segments: list[str] = []
        self.text = ""
        self.ended = False

    def _decode(self, start: int, end: int | None = None) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def push(self, token: int) -> bool:
        """Add a token; True if the text now contains a stop string, which it is cut before."""
        if self._tokenizer is None:
            return False
        self._ids.append(token)
        known, whole = self._decode(self._context, self._read), self._decode(self._context)
        new = ""
        if len(whole) > len(known) and not whole.endswith("�"):
            new = whole[len(known) :]
            self._context, self._read = self._read, len(self._ids)
        searched_from = max(0, len(self.text) - self._hold)
        self.segments.append(new)
        self.text += new
        found = [at for s in self._stop if (at := self.text.find(s, searched_from)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.ended = True
        return self.ended

    def finish(self) -> None:
        """Give out what was held back, an unfinished character too."""
        if not self.ended and self.segments:
            known, whole = self._decode(self._context, self._read), self._decode(self._context)
            self.segments[-1] += whole[len(known) :]
            self.text += whole[len(known) :]
        self.ended = True

    def release(self) -> Iterator[tuple[int, str]]:
        """New text that is final, as (index of its token, text), one item a token at most."""
        end = len(self.text) if self.ended else len(self.text) - self._hold
        offset = 0
        for index, segment in enumerate(self.segments):
            start, stop = max(offset, self._released), min(offset + len(segment), end)
            if start < stop:
                yield index, self.text[start:stop]
                self._released = stop
            offset += len(segment)
