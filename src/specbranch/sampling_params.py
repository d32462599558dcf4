"""Sampling parameters, under vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

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
            learned from earlier texts and, with γ = auto, on timing. Greedy decoding needs
            neither.

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
