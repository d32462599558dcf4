"""Noise, samplers, the logits pipeline, and the parameters behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbranch.errors import InputError
from specbranch.sampling.pipeline import LogitsPipeline
from specbranch.sampling.rng import Stream, _mix, gumbel_noise, random_bits, uniform
from specbranch.sampling.samplers import GumbelSampler, make_sampler
from specbranch.sampling_params import MOST_SEED, SamplingParams

SAMPLED = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.1]),
    min_p=st.sampled_from([0.0, 0.2]),
    seed=st.just(1),
)


def test_the_noise_is_what_it_was():
    """SplitMix64's published first output, and pinned values: a seed's text must never change."""
    assert _mix((1234567 + 0x9E3779B97F4A7C15) % 2**64) == 6457827717110365317
    assert random_bits(0, 0, Stream.TARGET, 2).tolist() == [
        3786468572763441381,
        16737827521453657339,
    ]
    assert gumbel_noise(1, 2, Stream.TARGET, 3).tolist() == pytest.approx(
        [-0.623359, 0.189607, -1.071505], abs=1e-6
    )
    assert uniform(1, 2, Stream.ACCEPT) == pytest.approx(0.8262778351425815, abs=1e-12)


def test_the_noise_has_gumbels_distribution():
    """Mean γ and variance π²/6, within 4 standard errors; a fixed seed."""
    noise = torch.cat([gumbel_noise(7, place, Stream.DRAFT, 1000) for place in range(500)])
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=4 * 1.2825 / len(noise) ** 0.5)
    assert noise.var().item() == pytest.approx(1.64493, abs=0.03)
    draws = torch.tensor([uniform(7, place, Stream.ACCEPT) for place in range(20_000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=4 * 0.2887 / 20_000**0.5)


@given(
    params=SAMPLED,
    vocabulary=st.sampled_from([7, 64, 4096]),
    rows=st.integers(2, 9),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_row_does_not_depend_on_how_many_there_are(params, vocabulary, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, vocabulary, generator=generator)
    pipeline, sampler = LogitsPipeline.of(params), make_sampler(params)
    whole = pipeline(logits)
    places = range(100, 100 + rows)
    chosen = sampler.tokens(whole, places, Stream.TARGET)
    for row, place in enumerate(places):
        alone = pipeline(logits[row : row + 1])
        assert torch.equal(alone[0], whole[row])
        assert sampler.tokens(alone, [place], Stream.TARGET) == [chosen[row]]


def test_a_large_vocabulary_is_no_different():
    logits = torch.randn(5, 49_152, generator=torch.Generator().manual_seed(1))
    pipeline = LogitsPipeline.of(SamplingParams(temperature=0.7, top_k=50, top_p=0.9, seed=0))
    whole = pipeline(logits)
    assert all(torch.equal(pipeline(logits[i : i + 1])[0], whole[i]) for i in range(5))


@given(params=SAMPLED, seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_distribution_is_that_of_transformers_warpers(params, seed):
    logits = 3 * torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    theirs = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        theirs.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        theirs.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        theirs.append(MinPLogitsWarper(params.min_p))
    expected: Tensor = theirs(torch.empty(3, 0, dtype=torch.long), logits).softmax(-1)
    torch.testing.assert_close(LogitsPipeline.of(params)(logits).exp(), expected)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-38, 1e-45, 5e-324])
@pytest.mark.parametrize("top", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_a_tiny_temperature_is_greedy(temperature, top):
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    params = SamplingParams(temperature=temperature, seed=1, **top)
    log_p = LogitsPipeline.of(params)(logits)
    assert not log_p.isnan().any()
    tokens = make_sampler(params).tokens(log_p, range(4), Stream.TARGET)
    assert tokens == logits.argmax(-1).tolist()


def test_history_is_asked_for_only_where_it_counts():
    assert not LogitsPipeline.of(SamplingParams(temperature=0.7, seed=1)).needs_history
    assert LogitsPipeline.of(SamplingParams(repetition_penalty=1.2)).needs_history
    assert LogitsPipeline.of(SamplingParams()).is_identity
    assert not LogitsPipeline.of(SamplingParams(repetition_penalty=1.2)).is_identity


def test_values_of_other_types_are_taken_where_they_are_clear():
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        max_tokens=np.int32(4),
        seed=np.uint64(2**63),
        stop=None,
        stop_token_ids=np.array([1, 2]),
    )
    assert (params.top_k, params.max_tokens, params.seed) == (3, 4, 2**63)
    assert {type(v) for v in (params.top_k, params.max_tokens, params.seed)} == {int}
    assert type(params.temperature) is float
    assert (params.stop, params.stop_token_ids) == ((), (1, 2))
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(max_tokens=None).max_tokens is None
    assert SamplingParams(stop="x").stop == ("x",)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"max_tokens": 8.0}, "max_tokens must be a whole number, not 8.0"),
        ({"max_tokens": True}, "max_tokens must be a whole number, not True"),
        ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"seed": 2**128}, f"seed must be between 0 and {MOST_SEED}"),
        ({"seed": -1}, f"seed must be between 0 and {MOST_SEED}"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"stop": 5}, "stop must be a list, not 5"),
        ({"stop": [""]}, "stop must be non-empty strings"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids must be token ids"),
    ],
)
def test_wrong_values_are_named_in_one_line(wrong, complaint):
    with pytest.raises(InputError) as caught:
        SamplingParams(**wrong)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_the_largest_seed_is_a_seed():
    sampler = GumbelSampler(MOST_SEED, coupled=True)
    assert 0 <= sampler.tokens(torch.zeros(1, 9), [3], Stream.TARGET)[0] < 9
