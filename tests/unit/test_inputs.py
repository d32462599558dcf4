"""Prompts in all the shapes that users have them in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from specbranch.engine.inputs import as_prompts, encode, match_params
from specbranch.errors import InputError
from specbranch.sampling_params import SamplingParams
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def ids_of(prompts):
    return [encode(each, TOKENIZER, 64, 100).token_ids for each in as_prompts(prompts)]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("w1 w2", [[1, 2]]),
        (["w1", "w2 w3"], [[1], [2, 3]]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (np.array([1, 2]), [[1, 2]]),
        (torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([torch.tensor([1, 2]), "w3"], [[1, 2], [3]]),
        ({"prompt": "w1"}, [[1]]),
        ({"prompt_token_ids": [4, 5]}, [[4, 5]]),
        ([{"prompt": "w1"}, {"prompt_token_ids": [4]}], [[1], [4]]),
        (BatchEncoding({"input_ids": [1, 2], "attention_mask": [1, 1]}), [[1, 2]]),
        (
            BatchEncoding(
                {
                    "input_ids": torch.tensor([[0, 1], [2, 3]]),
                    "attention_mask": torch.tensor([[0, 1], [1, 1]]),
                    "token_type_ids": torch.tensor([[0, 0], [0, 0]]),
                }
            ),
            [[1], [2, 3]],
        ),
        ({"input_ids": [np.array([1, 2])], "attention_mask": None}, [[1, 2]]),
        ({"prompt": "w1", "prompt_token_ids": None}, [[1]]),
        (np.array(["w1", "w2 w3"]), [[1], [2, 3]]),
        ([torch.tensor([[1, 2]])], [[1, 2]]),
    ],
)
def test_prompts_of_every_shape(prompts, expected):
    assert ids_of(prompts) == expected


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        (5, "a prompt is text, a list of token ids"),
        (None, "a prompt is text, a list of token ids"),
        ([None], "a prompt is text, a list of token ids"),
        ({"prompt": None}, "a prompt is text, a list of token ids"),
        ({"text": "w1"}, "a prompt is text, a list of token ids"),
        ([[1.0, 2.0]], "a prompt is text, a list of token ids"),
        ([[True]], "a prompt is text, a list of token ids"),
        ("", "the prompt is empty"),
        ([[]], "the prompt has no tokens"),
        ([torch.zeros(3, 3)], "a prompt is text, a list of token ids"),
        (b"w1", "a prompt is text, a list of token ids"),
        ([{"role": "user", "content": "w1"}], "a prompt is text, a list of token ids"),
        ({"prompt": "w1", "multi_modal_data": {}}, "a prompt is text, a list of token ids"),
        ({"input_ids": 5}, "a prompt is text, a list of token ids"),
        ({"input_ids": None}, "a prompt is text, a list of token ids"),
        ({"input_ids": [[1], 2]}, "a prompt is text, a list of token ids"),
        ({"input_ids": [[1]], "pixel_values": [0.5]}, "a prompt is text, a list of token ids"),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[1]]},
            "input_ids and attention_mask must have the same shape",
        ),
        ({"input_ids": [1, 2], "attention_mask": [0, 0]}, "the prompt has no tokens"),
        ([[64]], "prompt token ids must be between 0 and 63"),
        ([[1] * 100], "the prompt has 100 tokens and the context holds 100"),
        ("w1 \ud800", "the prompt is broken text: a lone surrogate at character 3"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(prompts, complaint):
    with pytest.raises(InputError) as caught:
        ids_of(prompts)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_text_needs_a_tokenizer():
    with pytest.raises(InputError, match="this LLM has no tokenizer"):
        encode("w1", None, 64, 100)


def test_parameters_for_all_or_for_each():
    one, other = SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)
    assert match_params(["a", "b"], one) == [one, one]
    assert match_params(["a", "b"], [one, other]) == [one, other]
    assert match_params(["a"], None) == [SamplingParams()]
    with pytest.raises(InputError, match="2 prompts and 1 sampling parameters"):
        match_params(["a", "b"], [one])


@pytest.mark.parametrize("params", [5, {"max_tokens": 5}, [None], ["a"], "a"])
def test_what_are_no_parameters_is_refused(params):
    with pytest.raises(InputError, match="sampling parameters must be SamplingParams, not"):
        match_params(["a"], params)
