"""From a model's logits to the log-probabilities that the sampling parameters make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbranch.errors import InputError
from specbranch.sampling.grammar import GrammarMask, GrammarPath, GrammarVocabulary
from specbranch.sampling.processors import (
    AllowedTokens,
    BadWords,
    Custom,
    Histories,
    LogitBias,
    MinTokens,
    OfTransformers,
    OutputPenalties,
    RowsProcessor,
)
from specbranch.sampling_params import SamplingParams

# Below, float32 cannot divide by a temperature; sampling is greedy long before.
LEAST_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class TextConstraints:
    """What parameters come to for a text, once prompt and tokenizer are known.

    Attributes:
        prompt_length: in tokens. What follows them was generated.
        bad_words: token ids of each sequence that must not occur.
        end_ids: tokens that cannot be chosen before `min_tokens`.
        grammar: that the text follows, in llguidance's form; None for free text.
    """

    prompt_length: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    end_ids: frozenset[int] = frozenset()
    grammar: str | None = None


UNCONSTRAINED = TextConstraints()


@dataclass(frozen=True)
class LogitsPipeline:
    """What sampling parameters do to rows of logits, in vLLM's order.

    Attributes:
        processors: change the logits, greedy decoding's too.
        warpers: look at the row alone; none where decoding is greedy.
        temperature: divides the logits before the warpers; 0 is greedy decoding.
        grammar: the last of the processors, if the text follows one.
    """

    processors: tuple[RowsProcessor, ...]
    warpers: LogitsProcessorList
    temperature: float
    grammar: GrammarMask | None = None

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        text: TextConstraints = UNCONSTRAINED,
        vocabulary: GrammarVocabulary | None = None,
    ) -> Self:
        """The pipeline of these parameters.

        Args:
            params: how the text is sampled.
            text: what they come to for it.
            vocabulary: of the target, where the text follows a grammar.
        """
        made: list[Any] = []
        if not params.greedy:
            if params.top_k:
                made.append(TopKLogitsWarper(params.top_k))
            if params.top_p is not None and params.top_p < 1:
                made.append(TopPLogitsWarper(params.top_p))
            if params.min_p:
                made.append(MinPLogitsWarper(params.min_p))
        processors = _processors(params, text)
        mask = None
        if text.grammar is not None:
            assert vocabulary is not None, "a worker gets it before the first text with a grammar"
            path = GrammarPath(vocabulary, text.grammar)
            mask = GrammarMask(path, vocabulary.end_ids, text.prompt_length)
            processors.append(mask)
        return cls(tuple(processors), LogitsProcessorList(made), params.temperature, mask)

    def forced(self, history: Sequence[int]) -> list[int]:
        """Tokens that the grammar, if there is one, leaves no choice about after others."""
        return [] if self.grammar is None else self.grammar.forced(history)

    @property
    def is_identity(self) -> bool:
        """Whether the logits rank the tokens as they are: greedy decoding without a processor."""
        return self.temperature == 0 and not self.processors

    @property
    def needs_history(self) -> bool:
        """Whether a row depends on the token ids before it."""
        return any(processor.needs_history for processor in self.processors)

    def __call__(self, logits: Tensor, histories: Histories | None = None) -> Tensor:
        """Log-probabilities of n rows.

        A row is rounded the same however many rows there are: every step works along a row.

        Args:
            logits: float32 ``[n, vocabulary]``; not written to.
            histories: for each row the token ids before it, where `needs_history`.

        Returns:
            float32 ``[n, vocabulary]``. Where the processors leave no token, all of a row is −∞.
        """
        scores = logits
        if self.processors:
            scores = logits.clone()
            for processor in self.processors:
                scores = processor(scores, histories)
        largest = scores.amax(-1, keepdim=True)
        warped = scores
        if self.temperature not in (0, 1):
            # The largest is taken off first, so that a tiny temperature gives −∞ and no NaN.
            warped = (scores - largest) / max(self.temperature, LEAST_TEMPERATURE)
        if self.warpers:
            nothing = torch.empty((len(warped), 0), dtype=torch.long, device=warped.device)
            warped = self.warpers(nothing, warped)
        log_probs = warped.log_softmax(-1)
        if self.processors:
            return log_probs.masked_fill(~(largest > -torch.inf), -torch.inf)
        return log_probs

    def check(self, log_probs: Tensor) -> None:
        """Refuse rows in which no token is left.

        Args:
            log_probs: what this pipeline gave, float32 ``[n, vocabulary]``.

        Raises:
            InputError: the parameters forbid all tokens at once.
        """
        if self.processors and bool((log_probs.amax(-1) == -torch.inf).any()):
            raise InputError(
                "the sampling parameters leave no token to go on with: allow more of them by "
                "allowed_token_ids, bad_words, min_tokens or logits_processors"
            )

    def drafting(self, logits: Tensor, histories: Histories | None = None) -> Tensor:
        """As a call, for a draft: where no token is left, what the model says."""
        log_probs = self(logits, histories)
        if not self.processors:
            return log_probs
        left = log_probs.amax(-1, keepdim=True) > -torch.inf
        return torch.where(left, log_probs, logits.log_softmax(-1))


def _processors(params: SamplingParams, text: TextConstraints) -> list[RowsProcessor]:
    """In vLLM's order: bans, biases, penalties."""
    start = text.prompt_length
    made: list[RowsProcessor] = [OfTransformers(each) for each in params.extra_processors]
    made += [Custom(each, start) for each in params.logits_processors or ()]
    if params.allowed_token_ids is not None:
        made.append(AllowedTokens(params.allowed_token_ids))
    if text.bad_words:
        made.append(BadWords(text.bad_words, start))
    if params.min_tokens and text.end_ids:
        made.append(MinTokens(params.min_tokens, text.end_ids, start))
    if params.logit_bias:
        made.append(LogitBias(params.logit_bias))
    if params.repetition_penalty not in (None, 1):
        made.append(OfTransformers(RepetitionPenaltyLogitsProcessor(params.repetition_penalty)))
    if params.frequency_penalty or params.presence_penalty:
        made.append(OutputPenalties(params.frequency_penalty, params.presence_penalty, start))
    return made
