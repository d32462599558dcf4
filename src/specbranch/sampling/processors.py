"""Logits processors: what sampling parameters do to rows of logits before the warpers.

A row belongs to one place of a text. What a processor does to it may depend on the tokens before
that place, along the row's own path: the committed prefix, draft tokens, and a branch. So the same
processors serve the target's rows and the draft's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

Histories = Sequence[Sequence[int]]


class RowsProcessor(ABC):
    """Changes rows of logits.

    Attributes:
        needs_history: whether a row depends on the token ids before it.
    """

    needs_history = True

    @abstractmethod
    def __call__(self, scores: Tensor, histories: Histories | None) -> Tensor:
        """The rows after this processor.

        Args:
            scores: float32 ``[n, vocabulary]``, which may be written to.
            histories: for each row the token ids before it, prompt included, where `needs_history`.

        Returns:
            float32 ``[n, vocabulary]``.
        """


class ByRow(RowsProcessor):
    """A processor that takes one row after the other."""

    def __call__(self, scores: Tensor, histories: Histories | None) -> Tensor:
        assert histories is not None
        for row, history in enumerate(histories):
            scores[row] = self.process(history, scores[row])
        return scores

    @abstractmethod
    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        """A row ``[vocabulary]``, which may be written to, after the tokens `history`."""


class AllowedTokens(RowsProcessor):
    """Only these tokens can be chosen (vLLM's `allowed_token_ids`)."""

    needs_history = False

    def __init__(self, allowed: Sequence[int]) -> None:
        self._allowed = torch.tensor(sorted(set(allowed)))

    def __call__(self, scores: Tensor, histories: Histories | None) -> Tensor:
        allowed = self._allowed.to(scores.device)
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed] = scores[:, allowed]
        return masked


class LogitBias(RowsProcessor):
    """Adds to the logits of single tokens (OpenAI's and vLLM's `logit_bias`)."""

    needs_history = False

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._tokens = torch.tensor(list(bias))
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32)

    def __call__(self, scores: Tensor, histories: Histories | None) -> Tensor:
        scores[:, self._tokens.to(scores.device)] += self._values.to(scores.device)
        return scores


class BadWords(ByRow):
    """The last token of a forbidden sequence cannot follow its other tokens (vLLM's `bad_words`).

    Args:
        words: token ids of each.
        start: length of the prompt. Only generated tokens count as the beginning of a word.
    """

    def __init__(self, words: Sequence[Sequence[int]], start: int) -> None:
        self._words = [list(word) for word in words]
        self._start = start

    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        for *before, last in self._words:
            place = len(history) - len(before)
            if place >= self._start and list(history[place:]) == before:
                row[last] = -torch.inf
        return row


class MinTokens(ByRow):
    """No token that ends the text before so many are generated (vLLM's `min_tokens`).

    Args:
        least: number of tokens.
        end_ids: tokens that end the text.
        start: length of the prompt.
    """

    def __init__(self, least: int, end_ids: frozenset[int], start: int) -> None:
        self._least = least
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.long)
        self._start = start

    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        if len(history) - self._start < self._least:
            row[self._end_ids.to(row.device)] = -torch.inf
        return row


class OutputPenalties(ByRow):
    """OpenAI's penalties: ``logit − frequency · count − presence · (count > 0)``.

    Args:
        frequency, presence: of tokens that were generated; the prompt does not count.
        start: length of the prompt.
    """

    def __init__(self, frequency: float, presence: float, start: int) -> None:
        self._frequency = frequency
        self._presence = presence
        self._start = start

    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        counts = Counter(history[self._start :])
        tokens = torch.tensor(list(counts), dtype=torch.long, device=row.device)
        seen = torch.tensor(list(counts.values()), dtype=torch.float32, device=row.device)
        row[tokens] -= self._frequency * seen
        row[tokens] -= self._presence
        return row


class OfTransformers(ByRow):
    """A processor of `transformers`.

    Args:
        processor: takes ids ``[1, n]`` and scores ``[1, vocabulary]``.
    """

    def __init__(self, processor: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._processor = processor

    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        ids = torch.tensor([list(history)], device=row.device)
        return self._processor(ids, row[None])[0]


class Custom(ByRow):
    """A user's callable, with the arguments that vLLM gave `logits_processors`.

    Args:
        processor: takes the generated token ids and a row of logits ``[vocabulary]``, or the
            prompt's token ids before both, and returns the row.
        start: length of the prompt.
    """

    def __init__(self, processor: Callable[..., Tensor], start: int) -> None:
        self._processor = processor
        self._takes_prompt = takes_prompt(processor)
        self._start = start

    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        given: list[Any] = [list(history[self._start :]), row]
        if self._takes_prompt:
            given.insert(0, list(history[: self._start]))
        return self._processor(*given)


def takes_prompt(processor: Callable[..., Tensor]) -> bool:
    """Whether a user's callable takes the prompt's token ids, too.

    Raises:
        TypeError: it takes neither two nor three arguments.
    """
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    given = [p for p in signature(processor).parameters.values() if p.kind in kinds]
    required = sum(p.default is Parameter.empty for p in given)
    if required > 3 or len(given) < 2:
        raise TypeError("takes neither two arguments nor three")
    return required == 3
