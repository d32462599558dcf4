"""Prompts as users give them: text, token ids, and what tokenizers and vLLM make of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from specbranch.errors import InputError
from specbranch.sampling_params import SamplingParams

# Text; token ids as a list, tuple, array or tensor; a `BatchEncoding`; or vLLM's dictionaries.
Prompt = Any
EXPECTED = (
    "a prompt is text, a list of token ids, what apply_chat_template gives, or a dictionary with "
    "'prompt' or 'prompt_token_ids'"
)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as text, empty where it was given as token ids, and as token ids."""

    text: str
    token_ids: list[int]


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list of prompts.

    Raises:
        InputError: it is neither.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        return _of_mapping(prompts)
    values = _plain(prompts)
    if not isinstance(values, list):
        raise InputError(f"{EXPECTED}; not {prompts!r:.80}")
    if values and all(_is_id(value) for value in values):
        return [values]
    return [each for value in values for each in _one(value)]


def _one(value: Any) -> list[Prompt]:
    """A prompt of several; a mapping of one."""
    if isinstance(value, Mapping):
        return _of_mapping(value)
    return [value]


def _of_mapping(given: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of a dictionary or of a tokenizer's `BatchEncoding`."""
    if "input_ids" in given:
        rows = _plain(given["input_ids"])
        if rows and not isinstance(rows[0], list):
            rows = [rows]
        masks = given.get("attention_mask")
        if masks is None:
            return list(rows)
        shown = _plain(masks)
        shown = [shown] if shown and not isinstance(shown[0], list) else shown
        pairs = (zip(row, mask, strict=True) for row, mask in zip(rows, shown, strict=True))
        return [[token for token, seen in pair if seen] for pair in pairs]
    for name in ("prompt_token_ids", "prompt"):
        if given.get(name) is not None:
            return [given[name]]
    raise InputError(
        f"{EXPECTED}; not a dictionary with {', '.join(map(repr, given)) or 'nothing'}"
    )


def _plain(values: Any) -> Any:
    """Arrays and tensors as lists."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return list(values) if isinstance(values, tuple) else values


def _is_id(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def encode(prompt: Prompt, tokenizer: Any, vocabulary: int, max_model_len: int) -> EncodedPrompt:
    """A prompt as token ids.

    Args:
        prompt: one of them.
        tokenizer: None takes token ids alone.
        vocabulary: number of logits.
        max_model_len: most tokens of a text, prompt included.

    Raises:
        InputError: it is no prompt, is empty, or leaves no room in the context.
    """
    if isinstance(prompt, Mapping):
        found = _of_mapping(prompt)
        if len(found) != 1:
            raise InputError(f"this holds {len(found)} prompts where one is meant")
        [prompt] = found
    if isinstance(prompt, str):
        text, ids = prompt, _of_text(prompt, tokenizer)
    else:
        values = _plain(prompt)
        if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
            [values] = values
        if not isinstance(values, list) or not all(_is_id(value) for value in values):
            raise InputError(f"{EXPECTED}; not {prompt!r:.80}")
        text, ids = "", [int(value) for value in values]
    if not ids:
        raise InputError("the prompt has no tokens: give some text to continue")
    if not all(0 <= token < vocabulary for token in ids):
        raise InputError(f"prompt token ids must be between 0 and {vocabulary - 1}")
    if len(ids) >= max_model_len:
        raise InputError(
            f"the prompt has {len(ids)} tokens and the context holds {max_model_len}: "
            f"shorten it to {max_model_len - 1} tokens or fewer"
        )
    return EncodedPrompt(text, ids)


def _of_text(prompt: str, tokenizer: Any) -> list[int]:
    if not prompt:
        raise InputError("the prompt is empty: give some text to continue")
    if tokenizer is None:
        raise InputError("this LLM has no tokenizer: give the prompt as token ids")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt is broken text: a lone surrogate at character {error.start}"
        ) from None
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return ids


def match_params(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """Sampling parameters for each prompt.

    Raises:
        InputError: a list of another length than the prompts'.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(prompts)
    several = list(params)
    if len(several) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts and {len(several)} sampling parameters: give one for all, or "
            "one for each"
        )
    return several
