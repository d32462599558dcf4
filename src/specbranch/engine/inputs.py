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
# What tokenizers add to `input_ids`, besides the attention mask, without a change of their meaning.
ADDED_BY_TOKENIZERS = {
    "token_type_ids",
    "special_tokens_mask",
    "assistant_masks",
    "offset_mapping",
    "length",
}


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
    if isinstance(prompts, str | EncodedPrompt):
        return [prompts]
    if isinstance(prompts, Mapping):
        return _of_mapping(prompts)
    values = _plain(prompts)
    if not isinstance(values, list):
        raise _refusal(prompts)
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
    names = {name for name, value in given.items() if value is not None}
    if "input_ids" in names and names - ADDED_BY_TOKENIZERS <= {"input_ids", "attention_mask"}:
        rows = _rows(given["input_ids"])
        if "attention_mask" not in names:
            return rows
        masks = _rows(given["attention_mask"])
        if list(map(len, rows)) != list(map(len, masks)):
            raise InputError("input_ids and attention_mask must have the same shape")
        return [
            [token for token, seen in zip(row, mask, strict=True) if seen]
            for row, mask in zip(rows, masks, strict=True)
        ]
    if names and names <= {"prompt_token_ids", "prompt"}:
        return [given["prompt_token_ids" if "prompt_token_ids" in names else "prompt"]]
    entries = ", ".join(repr(name) if name in names else f"{name!r}: None" for name in given)
    raise InputError(f"{EXPECTED}; not a dictionary with {entries or 'nothing'}")


def _rows(values: Any) -> list[list[Any]]:
    """A row of values, or several, as a list of rows."""
    found = _plain(values)
    if not isinstance(found, list):
        raise _refusal(values)
    rows = [_plain(row) for row in found]
    if not any(isinstance(row, list) for row in rows):
        return [rows]
    if not all(isinstance(row, list) for row in rows):
        raise _refusal(values)
    return rows


def _refusal(value: object) -> InputError:
    shown = " ".join(repr(value).split())  # the representation of a tensor has several lines
    return InputError(f"{EXPECTED}; not {shown:.80}")


def _plain(values: Any) -> Any:
    """Arrays and tensors as lists."""
    if hasattr(values, "tolist"):
        return values.tolist()
    return list(values) if isinstance(values, tuple) else values


def _is_id(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def encode(
    prompt: Prompt,
    tokenizer: Any,
    vocabulary: int,
    max_model_len: int,
    truncate: int | None = None,
) -> EncodedPrompt:
    """A prompt as token ids.

    Args:
        prompt: one of them.
        tokenizer: None takes token ids alone.
        vocabulary: number of logits.
        max_model_len: most tokens of a text, prompt included.
        truncate: keep so many tokens, the last ones.

    Raises:
        InputError: it is no prompt, is empty, or leaves no room in the context.
    """
    known = ""
    if isinstance(prompt, EncodedPrompt):
        known, prompt = prompt.text, prompt.token_ids
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
            raise _refusal(prompt)
        text, ids = known, [int(value) for value in values]
    if not ids:
        raise InputError("the prompt has no tokens: give some text to continue")
    if not all(0 <= token < vocabulary for token in ids):
        raise InputError(f"prompt token ids must be between 0 and {vocabulary - 1}")
    if truncate is not None:
        ids = ids[-truncate:]
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


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> EncodedPrompt:
    """A conversation as a prompt, by the tokenizer's chat template.

    Args:
        messages: each with ``role`` and ``content``, as the template expects them.
        tokenizer: of both models.
        chat_template: instead of the tokenizer's.
        add_generation_prompt: end with what begins an answer.
        continue_final_message: the last message is to be continued, not answered.
        tools: what the model may call, as JSON schemas.
        chat_template_kwargs: further variables of the template.

    Raises:
        InputError: no tokenizer or no template, or messages that the template refuses.
    """
    if tokenizer is None:
        raise InputError("this LLM has no tokenizer, and so no chat template: use generate")
    if chat_template is None and not tokenizer.chat_template:
        raise InputError(
            "the target has no chat template: use generate, or give chat_template; "
            "models that are made to talk ('Instruct', 'Chat') have one"
        )
    said = isinstance(messages, Sequence) and not isinstance(messages, str) and messages
    if not said or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise InputError("messages must be a list of {'role': …, 'content': …}, not empty")
    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=None if tools is None else list(tools),
            **(chat_template_kwargs or {}),
        )
    except Exception as error:  # a template is a program, and raises what it likes
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"the chat template refuses the messages: {reason}") from None
    # The template has written the special tokens; none are to be added.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return EncodedPrompt(text, ids)


def match_params(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """Sampling parameters for each prompt.

    Raises:
        InputError: a list of another length than the prompts', or something else.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(prompts)
    several = list(params) if isinstance(params, Sequence) else [params]
    if wrong := [each for each in several if not isinstance(each, SamplingParams)]:
        raise InputError(f"sampling parameters must be SamplingParams, not {wrong[0]!r:.80}")
    if len(several) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts and {len(several)} sampling parameters: give one for all, or "
            "one for each"
        )
    return several
