"""The pure functions: acceptance rules, branching, sampling."""

import math

import pytest
import torch

from specbranch.config import SpeculativeConfig
from specbranch.errors import InputError
from specbranch.policy.verify import residual, verify_matching, verify_rejection
from specbranch.sampling.pipeline import LogitsPipeline
from specbranch.sampling.rng import Stream, gumbel_noise
from specbranch.sampling.samplers import GreedySampler, GumbelSampler
from specbranch.sampling_params import SamplingParams


def log(rows):
    return torch.tensor(rows).log()


class Scripted(GreedySampler):
    """Accepts or rejects as it is told, and remembers with which probability."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def accepts(self, probability, position):
        self.asked.append((pytest.approx(probability), position))
        return self.answers.pop(0)


def test_matching_stops_at_the_first_difference():
    log_p = log([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert verify_matching([1, 0], log_p, GreedySampler(), 5) == (2, 1)
    assert verify_matching([1, 1], log_p, GreedySampler(), 5) == (1, 0)
    assert verify_matching([0, 0], log_p, GreedySampler(), 5) == (0, 1)
    assert verify_matching([], log_p[:1], GreedySampler(), 5) == (0, 1)


def test_rejection_weighs_p_against_q_and_samples_the_residual():
    log_p = log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]])
    log_q = log([[0.25, 0.5, 0.25], [0.6, 0.3, 0.1]])
    both = Scripted(True, True)
    assert verify_rejection([1, 0], log_p, log_q, both, 7) == (2, 1)
    assert both.asked == [(0.6, 7), (1 / 6, 8)]
    # p - q at the first place is (0.25, -0.2, -0.05): only token 0 has residual mass.
    assert verify_rejection([1, 0], log_p, log_q, Scripted(False), 7) == (0, 0)
    assert verify_rejection([1, 0], log_p, log_q, Scripted(True, False), 7) == (1, 2)


def test_a_token_the_target_prefers_is_accepted_with_probability_one():
    sampler = Scripted(True)
    verify_rejection([0], log([[0.9, 0.1], [0.5, 0.5]]), log([[0.5, 0.5]]), sampler, 0)
    assert sampler.asked == [(1.0, 0)]


def test_residual_of_equal_distributions_is_the_distribution():
    log_p = log([0.2, 0.8])
    assert torch.equal(residual(log_p, log_p), log_p)
    rest = residual(log([0.5, 0.5, 0.0]), log([0.25, 0.75, 0.0])).exp()
    assert rest.tolist() == [1.0, 0.0, 0.0]


ACCEPTANCE = [0.9, 0.5, 0.9]


def test_noise_belongs_to_its_position_and_stream():
    noise = gumbel_noise(1, 2, Stream.TARGET, 50)
    gumbel_noise.cache_clear()
    assert torch.equal(gumbel_noise(1, 2, Stream.TARGET, 50), noise)
    for seed, position, stream in (
        (2, 2, Stream.TARGET),
        (1, 3, Stream.TARGET),
        (1, 2, Stream.DRAFT),
        (1, 2, Stream.ACCEPT),
    ):
        assert not torch.equal(gumbel_noise(seed, position, stream, 50), noise)
    # A smaller vocabulary sees the same noise: padding a vocabulary changes no text.
    assert torch.equal(gumbel_noise(1, 2, Stream.TARGET, 20), noise[:20])


def test_coupling_shares_the_targets_noise_and_rejection_does_not():
    flat = torch.zeros(1000)
    coupled, apart = GumbelSampler(3, coupled=True), GumbelSampler(3, coupled=False)
    assert coupled.tokens(flat[None], [9], Stream.DRAFT) == coupled.tokens(
        flat[None], [9], Stream.TARGET
    )
    assert apart.tokens(flat[None], [9], Stream.TARGET) == coupled.tokens(
        flat[None], [9], Stream.TARGET
    )
    assert apart.tokens(flat[None], [9], Stream.DRAFT) != apart.tokens(
        flat[None], [9], Stream.TARGET
    )


def test_warp_follows_transformers_order():
    params = SamplingParams(temperature=0.5, top_k=2, repetition_penalty=2.0, seed=0)
    logits = torch.tensor([[2.0, 1.5, 1.0], [2.0, 1.5, 1.0]])
    log_p = LogitsPipeline.of(params)(logits, [[0], [1, 1]])
    # Penalised to 1.0, 1.5, 1.0; top-2 with the tie kept; divided by the temperature.
    assert log_p[0].exp().tolist() == pytest.approx(
        torch.tensor([2.0, 3.0, 2.0]).softmax(-1).tolist()
    )
    assert log_p[1].exp().tolist() == pytest.approx(
        torch.tensor([4.0, -math.inf, 2.0]).softmax(-1).tolist()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -2},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
        {"seed": -1},
        {"stop": [""]},
        {"acceptance": "typical"},
    ],
)
def test_bad_sampling_parameters_are_named_in_one_line(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be [^\n]*$"):
        SamplingParams(**wrong)


@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"epsilon": 1.1}, {"k_max": 0}])
def test_bad_decoding_options_are_named_in_one_line(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} must be [^\n]*$"):
        SpeculativeConfig(**wrong)
