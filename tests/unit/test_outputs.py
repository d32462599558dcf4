"""What outputs say: log-probabilities, samples, and why a text ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.methods.registry import METHODS
from specbranch.sampling.logprobs import logprobs_of
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

SPECULATIVE = sorted(set(METHODS) - {"autoregressive"})
PROMPT = [5, 9, 3, 14]


@pytest.fixture(scope="module")
def target():
    return tiny_model("llama", seed=1, eos_token_id=None)


@pytest.fixture(scope="module")
def llm(target):
    draft = tiny_model("llama", seed=2, eos_token_id=None)
    with LLM.from_models(target, draft, tiny_tokenizer(), speculate="always") as llm:
        yield llm


def own_logprobs(target, ids):
    """The model's log-probabilities by one fresh forward, float32 ``[n, vocabulary]``."""
    with torch.inference_mode():
        return target(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 4),
    most=st.sampled_from([0, 1, 3, 100, -1]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_chosen_token_and_the_likeliest(seed, rows, most):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 9, generator=generator)
    tokens = torch.randint(9, (rows,), generator=generator).tolist()
    log_probs = logits.log_softmax(-1)
    for row, token, place in zip(log_probs, tokens, logprobs_of(logits, tokens, most), strict=True):
        order = row.argsort(descending=True).tolist()
        best = order if most == -1 else order[:most]
        assert set(place) == {token, *best}
        assert next(iter(place)) == token
        assert all(found.logprob == row[t].item() for t, found in place.items())
        assert all(found.rank == order.index(t) + 1 for t, found in place.items())


@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "seed": 3, "presence_penalty": 1.0}])
def test_logprobs_are_the_targets_own_whatever_the_method(llm, target, sampled):
    params = SamplingParams(max_tokens=24, logprobs=2, **sampled)
    [plain] = llm.generate([PROMPT], params, method="autoregressive")
    [out] = plain.outputs
    right = own_logprobs(target, PROMPT + out.token_ids)[len(PROMPT) - 1 : -1]
    assert len(out.logprobs) == len(out.token_ids)
    for row, token, place in zip(right, out.token_ids, out.logprobs, strict=True):
        assert len(place) in (2, 3)
        assert place[token].logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert place[token].rank == int((row >= row[token]).sum())
        assert place[token].decoded_token == f"w{token}"
        likeliest = int(row.argmax())
        assert place[likeliest].rank == 1
    chosen = [
        place[token].logprob for token, place in zip(out.token_ids, out.logprobs, strict=True)
    ]
    assert out.cumulative_logprob == pytest.approx(sum(chosen))
    for method in SPECULATIVE:
        [ours] = llm.generate([PROMPT], params, method=method)
        assert ours.outputs[0].token_ids == out.token_ids
        assert ours.outputs[0].logprobs == out.logprobs, method


def test_without_being_asked_for_there_are_none(llm):
    [out] = llm.generate([PROMPT], SamplingParams(max_tokens=3))
    assert out.outputs[0].logprobs is None
    assert out.outputs[0].cumulative_logprob is None
    assert out.prompt_logprobs is None


@pytest.mark.parametrize("length", [1, 2, 40])
def test_logprobs_of_the_prompt(llm, target, length):
    prompt = [(7 * i) % VOCABULARY for i in range(length)]
    params = SamplingParams(max_tokens=8, prompt_logprobs=1)
    [out] = llm.generate([prompt], params)
    assert out.prompt_logprobs[0] is None
    assert len(out.prompt_logprobs) == length
    right = own_logprobs(target, prompt)
    for row, token, place in zip(right, prompt[1:], out.prompt_logprobs[1:], strict=False):
        assert place[token].logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert set(place) == {token, int(row.argmax())}
    [without] = llm.generate([prompt], replace(params, prompt_logprobs=None))
    assert out.outputs[0].token_ids == without.outputs[0].token_ids


def test_samples_have_seeds_that_follow_one_another(llm):
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=2**64 - 1, n=3)
    [out] = llm.generate([PROMPT], params)
    assert [each.index for each in out.outputs] == [0, 1, 2]
    texts = [each.token_ids for each in out.outputs]
    assert len(set(map(tuple, texts))) == 3
    for seed, text in zip((2**64 - 1, 0, 1), texts, strict=True):
        [alone] = llm.generate([PROMPT], replace(params, n=1, seed=seed))
        assert alone.outputs[0].token_ids == text
    assert (out.params.n, out.params.seed) == (3, 2**64 - 1)
    assert out.metrics.committed == sum(map(len, texts))
    [plain] = llm.generate([PROMPT], params, method="autoregressive")
    assert [each.token_ids for each in plain.outputs] == texts
    with pytest.raises(InputError, match="n must be 1, not 3"):
        llm.stream(PROMPT, params)
    with pytest.raises(InputError, match="n must be 1 for greedy decoding"):
        SamplingParams(n=2)


def test_samples_without_a_seed_get_one(llm):
    [out] = llm.generate([PROMPT], SamplingParams(max_tokens=12, temperature=1.0, n=2))
    [again] = llm.generate([PROMPT], out.params)
    assert [each.token_ids for each in out.outputs] == [each.token_ids for each in again.outputs]


def test_a_long_prompt_is_cut_on_the_left(llm):
    long = [i % VOCABULARY for i in range(300)]
    params = SamplingParams(max_tokens=6, truncate_prompt_tokens=10)
    [out] = llm.generate([long], params)
    assert out.prompt_token_ids == long[-10:]
    [short] = llm.generate([long[-10:]], SamplingParams(max_tokens=6))
    assert out.outputs[0].token_ids == short.outputs[0].token_ids
    [fitting] = llm.generate([long], replace(params, truncate_prompt_tokens=-1))
    assert len(fitting.prompt_token_ids) == llm.max_model_len - 6
    assert len(fitting.outputs[0].token_ids) == 6
    [whole] = llm.generate([long[:3]], params)
    assert whole.prompt_token_ids == long[:3]


def test_why_a_text_ended(llm):
    params = SamplingParams(max_tokens=20)
    [free] = llm.generate([PROMPT], params)
    ids = free.outputs[0].token_ids
    assert (free.outputs[0].finish_reason, free.outputs[0].stop_reason) == ("length", None)
    at = next(i for i in range(3, 20) if ids[i] not in ids[:i])
    word = f"w{ids[at]}"
    for method in METHODS:
        [out] = llm.generate([PROMPT], replace(params, stop_token_ids=[ids[at]]), method=method)
        [ended] = out.outputs
        assert (ended.finish_reason, ended.stop_reason) == ("stop", ids[at])
        assert ended.token_ids == ids[: at + 1]
        assert not ended.text.endswith(word)
        kept = replace(params, stop_token_ids=[ids[at]], include_stop_str_in_output=True)
        [out] = llm.generate([PROMPT], kept, method=method)
        assert out.outputs[0].text == ended.text + " " + word
        by_text = replace(params, stop=[word + " "], include_stop_str_in_output=True)
        [out] = llm.generate([PROMPT], by_text, method=method)
        assert out.outputs[0].text.endswith(word + " ")
        assert out.outputs[0].stop_reason == word + " "


def test_a_stop_string_counts_only_after_min_tokens(llm):
    params = SamplingParams(max_tokens=20, stop=["w"])
    [out] = llm.generate([PROMPT], params)
    assert len(out.outputs[0].token_ids) == 1
    [out] = llm.generate([PROMPT], replace(params, min_tokens=5))
    assert len(out.outputs[0].token_ids) == 6
    assert out.outputs[0].text.count("w") == 5


def test_special_tokens_and_no_text_at_all(llm):
    # w0 is the tokenizer's special token.
    params = SamplingParams(max_tokens=4, logit_bias={0: 100.0})
    [out] = llm.generate([PROMPT], params)
    assert out.outputs[0].text == ""
    [out] = llm.generate([PROMPT], replace(params, skip_special_tokens=False))
    assert out.outputs[0].text.split() == ["w0"] * 4
    pieces = list(llm.stream(PROMPT, replace(params, skip_special_tokens=False)))
    assert "".join(map(str, pieces)) == out.outputs[0].text
    [out] = llm.generate([PROMPT], SamplingParams(max_tokens=4, logprobs=0, detokenize=False))
    assert out.outputs[0].text == ""
    assert len(out.outputs[0].token_ids) == 4
    [place, *_] = out.outputs[0].logprobs
    assert [found.decoded_token for found in place.values()] == [None]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"n": 0}, "n must be 1 or more, not 0"),
        ({"logprobs": -2}, "logprobs must be -1 or more, not -2"),
        ({"prompt_logprobs": 1.5}, "prompt_logprobs must be a whole number, not 1.5"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be 1 or more, or -1, not 0"),
        (
            {"detokenize": False, "stop": "x"},
            "detokenize must be True where stop strings are given, not False",
        ),
    ],
)
def test_wrong_values_are_named_in_one_line(wrong, complaint):
    with pytest.raises(InputError) as caught:
        SamplingParams(**wrong)
    assert str(caught.value) == complaint
