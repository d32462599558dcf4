"""Sampling parameters, the warped next-token distribution, and counter-based randomness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbranch.errors import InputError

Acceptance = Literal["coupled", "rejection"]


@dataclass(frozen=True)
class SamplingParams:
    """How text is sampled; names and meanings as in vLLM and `transformers`.

    Attributes:
        temperature: 0 is greedy decoding, the default.
        top_k: keep this many likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability.
        min_p: drop tokens less probable than this share of the likeliest one.
        repetition_penalty: divides (multiplies, if negative) the logits of tokens already there.
        max_tokens: most tokens to generate.
        seed: same seed, same text; None draws one.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the text, besides the model's end-of-text token.
        ignore_eos: go on after the model's end-of-text token.
        acceptance: the rule by which sampled draft tokens are accepted (DESIGN §5). `coupled`
            gives the same text for the same seed with any draft and method, plain decoding
            included; `rejection` (Leviathan et al. 2023, Chen et al. 2023) accepts more often and
            is exact in distribution, but its text for a seed depends on the draft, on what it has
            learned from earlier texts and, with γ = auto, on timing. Greedy decoding needs neither.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 128
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    acceptance: Acceptance = "coupled"
    extra_processors: LogitsProcessorList = field(default_factory=LogitsProcessorList, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        checks = [
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
            ("stop", all(self.stop), "non-empty strings"),
            ("acceptance", self.acceptance in ("coupled", "rejection"), "coupled or rejection"),
        ]
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def coupled(self) -> bool:
        """Whether draft and target choose by the same noise."""
        return not self.greedy and self.acceptance == "coupled"

    def processors(self) -> LogitsProcessorList:
        """`transformers`' own processors for these parameters, in the order it applies them."""
        made = LogitsProcessorList(self.extra_processors)
        if self.repetition_penalty != 1:
            made.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.greedy:
            return made
        if self.temperature != 1:
            made.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            made.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            made.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            made.append(MinPLogitsWarper(self.min_p))
        return made


def warp(
    logits: Tensor, contexts: Sequence[Sequence[int]], processors: LogitsProcessorList
) -> Tensor:
    """Log-probabilities after the sampling parameters.

    Args:
        logits: float32 ``[n, vocabulary]``.
        contexts: for each row the token ids before it.

    Returns:
        float32 ``[n, vocabulary]``; rows are worked on one by one, so that how a row is rounded
        does not depend on how many there are.
    """
    rows = []
    for row, context in zip(logits, contexts, strict=True):
        scores = row[None]
        if processors:
            ids = torch.tensor([list(context)], device=logits.device)
            scores = processors(ids, scores)
        rows.append(scores.log_softmax(-1))
    return torch.cat(rows)


class Chooser(Protocol):
    """The randomness of one request. Draws depend on the position, never on the order of calls."""

    def scores(self, log_probs: Tensor, position: int, stream: str) -> Tensor:
        """Rank the vocabulary, float32 ``[vocabulary]``: the chosen token has the highest score."""

    def token(self, log_probs: Tensor, position: int, stream: str) -> int:
        """A token from the distribution ``[vocabulary]`` for the place `position` of the text."""

    def accepts(self, probability: float, position: int) -> bool:
        """True with the given probability."""


class Greedy:
    """Always the likeliest token; the lowest id among equals."""

    def scores(self, log_probs: Tensor, position: int, stream: str) -> Tensor:
        return log_probs

    def token(self, log_probs: Tensor, position: int, stream: str) -> int:
        return int(log_probs.argmax())

    def accepts(self, probability: float, position: int) -> bool:
        raise NotImplementedError("greedy decoding compares tokens, it does not weigh them")


# Streams of the rejection rule: its draws at one position must be independent of each other.
# The coupled rule draws everything from TARGET, which is what couples draft and target.
TARGET, DRAFT, ACCEPT = "target", "draft", "accept"
_STREAMS = {TARGET: 0, DRAFT: 1, ACCEPT: 2}


def _generator(seed: int, position: int, stream: str) -> np.random.Generator:
    counter = [0, 0, position, _STREAMS[stream]]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


@lru_cache(maxsize=256)
def gumbel_noise(seed: int, position: int, stream: str, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 ``[vocabulary]``, a pure function of its arguments."""
    noise = -np.log(_generator(seed, position, stream).standard_exponential(vocabulary))
    return torch.from_numpy(noise.astype(np.float32))


@dataclass(frozen=True)
class Seeded:
    """Gumbel-max sampling: argmax of log-probability plus the noise owned by (seed, position)."""

    seed: int
    coupled: bool

    def scores(self, log_probs: Tensor, position: int, stream: str) -> Tensor:
        owner = TARGET if self.coupled else stream
        noise = gumbel_noise(self.seed, position, owner, log_probs.shape[-1])
        return log_probs + noise.to(log_probs.device)

    def token(self, log_probs: Tensor, position: int, stream: str) -> int:
        return int(self.scores(log_probs, position, stream).argmax())

    def accepts(self, probability: float, position: int) -> bool:
        return bool(_generator(self.seed, position, ACCEPT).random() < probability)


def make_chooser(params: SamplingParams) -> Chooser:
    """The randomness that the parameters ask for; their seed must be set unless they are greedy."""
    if params.greedy:
        return Greedy()
    assert params.seed is not None
    return Seeded(params.seed, params.coupled)
