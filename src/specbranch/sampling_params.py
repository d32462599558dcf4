"""Sampling parameters, under vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Literal

from specbranch.errors import InputError
from specbranch.structured_outputs import StructuredOutputsParams, as_structured_outputs

Acceptance = Literal["coupled", "rejection"]
MOST_SEED = 2**64 - 1
MOST_PENALTY = 2.0  # OpenAI's and vLLM's
# What a target may have defaults for, and what has no effect.
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class SamplingParams:
    """How text is sampled; names and meanings as in vLLM.

    Logits pass, in this order: `logits_processors`, `allowed_token_ids`, `bad_words`, `min_tokens`,
    `logit_bias`, `repetition_penalty`, `frequency_penalty`, `presence_penalty`, the mask of
    `structured_outputs`, then `temperature`, `top_k`, `top_p` and `min_p`.

    What is None of `top_k`, `top_p`, `min_p` and `repetition_penalty` is as the target's generation
    configuration has it, or else off: see `ModelConfig.generation_config`.

    Attributes:
        temperature: 0 is greedy decoding, the default.
        top_k: keep this many likeliest tokens; 0 and −1 keep all.
        top_p: keep the likeliest tokens that together reach this probability.
        min_p: drop tokens less probable than this share of the likeliest one.
        repetition_penalty: divides (multiplies, if negative) the logits of tokens already there.
        max_tokens: most tokens to generate; None is up to the context's end.
        seed: same seed, same text; 0 or more and below 2⁶⁴. None draws one.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the text, besides the model's end-of-text tokens.
        ignore_eos: go on after the model's end-of-text token.
        acceptance: the rule by which sampled draft tokens are accepted (docs/exactness.md).
            `coupled` gives the same text for the same seed with any draft and method, plain
            decoding included; `rejection` (Leviathan et al. 2023, Chen et al. 2023) accepts more
            often and is exact in distribution, but its text for a seed depends on the draft, on
            what it has learned from earlier texts and, with γ = auto, on timing. Greedy decoding
            needs neither.
        presence_penalty: taken off the logits of tokens that were generated before; −2 to 2.
        frequency_penalty: likewise, once for each time that they were.
        min_tokens: no end-of-text token, stop token or stop string before so many tokens.
        logit_bias: added to the logits of these token ids.
        allowed_token_ids: only these can be generated. An end-of-text token is one of them only if
            it is in the list.
        bad_words: strings whose tokens are never generated in a row, at the start of a word or
            after a space.
        logits_processors: callables on one row of logits, applied in order: each takes the
            generated token ids (or the prompt's, then those) and the row, a float32 tensor
            ``[vocabulary]`` which it may write to, and returns the row. It is called for places
            that are drafted, in any order and more than once, so its result may depend on its
            arguments alone.
        structured_outputs: what the text has to be: JSON by a schema, a choice, … (a
            `StructuredOutputsParams`, or a dictionary of its fields). The text ends when that is
            complete, also with `ignore_eos`.
        n: how many samples of the prompt. The seeds of the further ones follow the first's.
        logprobs: tell with each token how likely it was, and this many of the likeliest ones; 0 is
            just the token, −1 the whole vocabulary. They are the target's own probabilities, before
            all of the above (vLLM's `raw_logprobs`).
        prompt_logprobs: likewise of the prompt's tokens.
        truncate_prompt_tokens: keep only so many tokens of the prompt, the last ones; −1 keeps what
            leaves room for `max_tokens`.
        include_stop_str_in_output: the string, or the token, that ends the text is part of it.
        skip_special_tokens: special tokens are no part of the text.
        detokenize: make text of the tokens; without it there are token ids alone.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = 128
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    acceptance: Acceptance = "coupled"
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = ()
    logits_processors: Sequence[Callable[..., Any]] | None = ()
    structured_outputs: StructuredOutputsParams | Mapping[str, Any] | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    extra_processors: Sequence[Any] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        ):
            if getattr(self, name) is not None or name not in OFF:
                self._set(name, _number(name, getattr(self, name)))
        if self.top_k is not None:
            self._set("top_k", max(0, self._whole_number("top_k", least=-1)))
        if self.max_tokens is not None:
            self._set("max_tokens", self._whole_number("max_tokens", least=1))
        self._set("min_tokens", self._whole_number("min_tokens", 0, self.max_tokens))
        self._set("n", self._whole_number("n", least=1))
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._set(name, self._whole_number(name, least=-1))
        if self.truncate_prompt_tokens is not None:
            kept = self._whole_number("truncate_prompt_tokens", least=-1)
            self._set("truncate_prompt_tokens", kept)
        if self.seed is not None:
            self._set("seed", self._whole_number("seed", least=0, most=MOST_SEED))
        for name in ("stop", "bad_words"):
            given = getattr(self, name)
            self._set(name, (given,) if isinstance(given, str) else _tuple(name, given or ()))
        for name in ("stop_token_ids", "allowed_token_ids", "logits_processors"):
            given = getattr(self, name)
            if given is not None or name != "allowed_token_ids":
                self._set(name, _tuple(name, () if given is None else given))
        self._set("structured_outputs", as_structured_outputs(self.structured_outputs))
        if self.logit_bias is not None:
            self._set("logit_bias", _bias(self.logit_bias))
        self._check()
        for name in ("stop_token_ids", "allowed_token_ids"):
            if (ids := getattr(self, name)) is not None:
                self._set(name, tuple(int(token) for token in ids))

    def _check(self) -> None:
        """Refuse values out of their range."""
        checks = [
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty is None or self.repetition_penalty > 0,
                "above 0",
            ),
            ("presence_penalty", abs(self.presence_penalty) <= MOST_PENALTY, "between -2 and 2"),
            ("frequency_penalty", abs(self.frequency_penalty) <= MOST_PENALTY, "between -2 and 2"),
            ("stop", _are_strings(self.stop or ()), "non-empty strings"),
            ("bad_words", _are_strings(self.bad_words or ()), "non-empty strings"),
            ("stop_token_ids", all(map(_is_whole, self.stop_token_ids or ())), "token ids"),
            ("logits_processors", all(map(callable, self.logits_processors or ())), "callables"),
            ("truncate_prompt_tokens", self.truncate_prompt_tokens != 0, "1 or more, or -1"),
            ("n", self.n == 1 or not self.greedy, "1 for greedy decoding (temperature 0)"),
            ("detokenize", self.detokenize or not self.stop, "True where stop strings are given"),
            ("acceptance", self.acceptance in ("coupled", "rejection"), "coupled or rejection"),
        ]
        if self.allowed_token_ids is not None:
            ids = self.allowed_token_ids
            valid = len(ids) > 0 and all(map(_is_whole, ids))
            checks.append(("allowed_token_ids", valid, "one token id or more"))
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _whole_number(self, name: str, least: int, most: int | None = None) -> int:
        """The field as a Python integer."""
        value = getattr(self, name)
        if not _is_whole(value):
            raise InputError(f"{name} must be a whole number, not {value!r}")
        if value < least or (most is not None and value > most):
            beyond = f"{least} or more" if most is None else f"between {least} and {most}"
            raise InputError(f"{name} must be {beyond}, not {value!r}")
        return int(value)

    def with_defaults(self, defaults: Mapping[str, float]) -> SamplingParams:
        """The same with everything set.

        Args:
            defaults: of the target's generation configuration; what it does not say is off.
        """
        lacking = [name for name in OFF if getattr(self, name) is None]
        found: dict[str, Any] = {name: defaults.get(name, OFF[name]) for name in lacking}
        return replace(self, **found)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def coupled(self) -> bool:
        """Whether draft and target choose by the same noise."""
        return not self.greedy and self.acceptance == "coupled"


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _are_strings(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _number(name: str, value: object) -> float:
    """A finite number as a Python float; `numpy`'s are taken, too."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name} must be a number, not {value!r}")
    number = float(value)
    if number - number != 0:  # NaN, or infinite
        raise InputError(f"{name} must be a finite number, not {value!r}")
    return number


def _bias(given: Mapping[Any, Any]) -> dict[int, float]:
    """Biases by token id; JSON's keys are strings."""
    if not isinstance(given, Mapping):
        raise InputError(f"logit_bias must be a dictionary of token ids, not {given!r}")
    bias = {}
    for token, value in given.items():
        if isinstance(token, str) and token.isdecimal():
            token = int(token)
        if not _is_whole(token):
            raise InputError(f"logit_bias must be a dictionary of token ids, not of {token!r}")
        bias[int(token)] = _number(f"logit_bias of token {token}", value)
    return bias


def _tuple(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise InputError(f"{name} must be a list, not {values!r}") from None
