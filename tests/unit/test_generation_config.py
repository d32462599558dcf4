"""What `SamplingParams` leave open is as the target's generation configuration has it."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from specbranch import LLM, SamplingParams
from specbranch.methods.registry import METHODS
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer

IDS = [5, 9, 3, 14]


def model_with(**given):
    model = tiny_model("llama", seed=1, eos_token_id=None)
    model.generation_config = GenerationConfig(**given)
    return model


def tokens(llm, params, method=None):
    return llm.generate([IDS], params, method=method)[0].outputs[0].token_ids


def by_transformers(model, **given):
    ids, mask = torch.tensor([IDS]), torch.ones(1, len(IDS), dtype=torch.long)
    found = model.generate(ids, attention_mask=mask, do_sample=False, **given)
    return found[0, len(IDS) :].tolist()


def test_greedy_text_is_that_of_transformers(tmp_path):
    """A penalty in the checkpoint, as Qwen's have it."""
    model = model_with(repetition_penalty=1.3, pad_token_id=0)
    right = by_transformers(model, max_new_tokens=30)
    folder = save_pair_half(tmp_path, model, tiny_tokenizer())
    params = SamplingParams(max_tokens=30)
    with LLM(folder, folder, executor="inline", speculate="always", enforce_eager=True) as llm:
        assert {tuple(tokens(llm, params, method)) for method in METHODS} == {tuple(right)}
    plain = by_transformers(model, max_new_tokens=30, repetition_penalty=1.0)
    assert plain != right
    with LLM(folder, None, generation_config="vllm", enforce_eager=True) as llm:
        assert tokens(llm, params) == plain
    with LLM(folder, None, enforce_eager=True) as llm:
        assert tokens(llm, SamplingParams(max_tokens=30, repetition_penalty=1.0)) == plain


def test_what_is_given_wins_and_greedy_decoding_stays_greedy():
    model = model_with(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    with LLM.from_models(model, None) as llm:
        [out] = llm.generate([IDS], SamplingParams(max_tokens=4))
        assert out.params.greedy
        [out] = llm.generate([IDS], SamplingParams(max_tokens=4, temperature=1.0, top_p=0.5))
        assert (out.params.top_k, out.params.top_p, out.params.min_p) == (20, 0.5, 0.0)
        default = llm.get_default_sampling_params()
        assert (default.temperature, default.top_k, default.top_p) == (0.6, 20, 0.95)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [({}, 0.0), ({"do_sample": True}, 1.0), ({"temperature": 0.6}, 0.0)],
)
def test_the_temperature_that_a_configuration_means(given, temperature):
    with LLM.from_models(model_with(**given), None) as llm:
        assert llm.get_default_sampling_params().temperature == temperature


def test_any_of_several_end_tokens_ends_the_text():
    model = model_with()
    with LLM.from_models(model, None) as llm:
        free = tokens(llm, SamplingParams(max_tokens=20))
    first, second = free[3], next(t for t in free[4:] if t not in free[:4])
    for ends in ([first, second], [second, first]):
        model = model_with(eos_token_id=ends)
        with LLM.from_models(model, model, speculate="always") as llm:
            for method in METHODS:
                text = tokens(llm, SamplingParams(max_tokens=20), method)
                assert text == free[: free.index(first) + 1]
