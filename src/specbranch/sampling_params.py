"""Sampling parameters, under vLLM's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from specbranch.errors import InputError

Acceptance = Literal["coupled", "rejection"]
MOST_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How text is sampled; names and meanings as in vLLM and `transformers`.

    Attributes:
        temperature: 0 is greedy decoding, the default.
        top_k: keep this many likeliest tokens; 0 and −1 keep all.
        top_p: keep the likeliest tokens that together reach this probability.
        min_p: drop tokens less probable than this share of the likeliest one.
        repetition_penalty: divides (multiplies, if negative) the logits of tokens already there.
        max_tokens: most tokens to generate; None is up to the context's end.
        seed: same seed, same text; 0 or more and below 2⁶⁴. None draws one.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: tokens that end the text, besides the model's end-of-text token.
        ignore_eos: go on after the model's end-of-text token.
        acceptance: the rule by which sampled draft tokens are accepted (docs/exactness.md).
            `coupled` gives the same text for the same seed with any draft and method, plain
            decoding included; `rejection` (Leviathan et al. 2023, Chen et al. 2023) accepts more
            often and
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
    max_tokens: int | None = 128
    seed: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    acceptance: Acceptance = "coupled"
    extra_processors: Sequence[Any] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            self._set(name, _number(name, getattr(self, name)))
        self._set("top_k", max(0, self._whole_number("top_k", least=-1)))
        if self.max_tokens is not None:
            self._set("max_tokens", self._whole_number("max_tokens", least=1))
        if self.seed is not None:
            self._set("seed", self._whole_number("seed", least=0, most=MOST_SEED))
        stop = () if self.stop is None else self.stop
        self._set("stop", (stop,) if isinstance(stop, str) else _tuple("stop", stop))
        ids = () if self.stop_token_ids is None else self.stop_token_ids
        self._set("stop_token_ids", _tuple("stop_token_ids", ids))
        checks = [
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("stop", all(isinstance(s, str) and s for s in self.stop or ()), "non-empty strings"),
            ("stop_token_ids", all(map(_is_whole, self.stop_token_ids or ())), "token ids"),
            ("acceptance", self.acceptance in ("coupled", "rejection"), "coupled or rejection"),
        ]
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")
        self._set("stop_token_ids", tuple(int(token) for token in self.stop_token_ids or ()))

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

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def coupled(self) -> bool:
        """Whether draft and target choose by the same noise."""
        return not self.greedy and self.acceptance == "coupled"


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(name: str, value: object) -> float:
    """A finite number as a Python float; `numpy`'s are taken, too."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name} must be a number, not {value!r}")
    number = float(value)
    if number - number != 0:  # NaN, or infinite
        raise InputError(f"{name} must be a finite number, not {value!r}")
    return number


def _tuple(name: str, values: Sequence[Any]) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise InputError(f"{name} must be a list, not {values!r}") from None
