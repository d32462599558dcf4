"""The pure functions: acceptance rules, branching, sampling."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch.errors import InputError
from specbranch.methods import SpeculativeConfig
from specbranch.models.runner import CausalRunner
from specbranch.policy.acceptance import Calibration
from specbranch.policy.branching import (
    DraftLengthPolicy,
    branch_count,
    candidates,
    confidence,
    kept_length,
    outcomes,
    survivor,
)
from specbranch.policy.signal import Keep, Signal
from specbranch.policy.verify import residual, verify_matching, verify_rejection
from specbranch.sampling.processors import warp
from specbranch.sampling.samplers import (
    ACCEPT,
    DRAFT,
    TARGET,
    GreedySampler,
    GumbelSampler,
    gumbel_noise,
)
from specbranch.sampling_params import SamplingParams
from specbranch.workers.drafter import DraftWorker
from specbranch.workers.messages import CommitUpdate, Opening
from tests.tiny import VOCABULARY, tiny_model


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


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 1))
@settings(derandomize=True)
def test_kept_length_ends_before_the_first_doubtful_token(confidences, epsilon):
    kept = kept_length(confidences, epsilon)
    assert all(value >= epsilon for value in confidences[:kept])
    assert kept == len(confidences) or confidences[kept] < epsilon


@pytest.mark.parametrize(
    ("value", "k_max", "k"),
    [(0.0, 8, 8), (0.5, 8, 4), (0.51, 8, 3), (0.99, 8, 1), (1.0, 8, 1), (0.0, 1, 1)],
)
def test_branch_count_follows_the_paper(value, k_max, k):
    assert branch_count(value, k_max) == k


def test_candidates_and_survivor():
    shares = log([0.1, 0.5, 0.15, 0.25])
    approximately = [(1, pytest.approx(0.5)), (3, pytest.approx(0.25)), (2, pytest.approx(0.15))]
    assert candidates(shares, 3) == approximately
    assert [token for token, _ in candidates(torch.tensor([0.1, 3.0]), 5)] == [1, 0]
    assert candidates(torch.tensor([-math.inf, 3.0, -math.inf]), 3) == [(1, 1.0)]
    prepared = [(2, 4), (2, 7), (0, 7)]
    assert survivor(prepared, (2, 7)) == 1
    assert survivor(prepared, (0, 7)) == 2
    assert survivor(prepared, (1, 7)) is None


def test_outcomes_are_ranked_by_their_probability():
    """A chain 0 1 with acceptance 0.5 and 0.8, computed by hand."""
    q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    found = outcomes([0, 1], [0.5, 0.8], q.log(), 9)
    expected = {
        (0, 1): 0.5 * 0.75,
        (2, 2): 0.4 * 0.7,
        (0, 2): 0.5 * 0.25,
        (2, 1): 0.4 * 0.2,
        (1, 0): 0.1 * 2 / 3,
        (2, 0): 0.4 * 0.1,
        (1, 2): 0.1 / 3,
    }
    assert sum(expected.values()) == pytest.approx(1)
    assert [(o.accepted, o.token) for o in found] == list(expected)
    assert [o.probability for o in found] == pytest.approx(list(expected.values()))
    assert outcomes([0, 1], [0.5, 0.8], q.log(), 3) == found[:3]
    assert [o.token for o in outcomes([], [], q[2:].log(), 2)] == [2, 1]


def test_an_even_fan_out_takes_the_best_of_every_place_first():
    q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    found = outcomes([0, 1], [0.5, 0.8, 0.9], q.log(), 5, even=True)
    # Token 2 is what the draft would go on with: the best at the end.
    assert [(o.accepted, o.token) for o in found] == [(2, 2), (0, 1), (1, 0), (2, 1), (0, 2)]


def test_the_end_of_a_chain_may_be_judged_like_the_rest():
    """After 0, token 2 would come next, with acceptance 0.9 instead of its 0.7."""
    q = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    found = outcomes([0], [0.5, 0.9], q.log(), 9)
    expected = {
        (1, 2): 0.45,
        (0, 1): 0.5 * 0.75,
        (0, 2): 0.5 * 0.25,
        (1, 1): 0.05 * 2 / 3,
        (1, 0): 0.05 / 3,
    }
    assert [(o.accepted, o.token) for o in found] == list(expected)
    assert [o.probability for o in found] == pytest.approx(list(expected.values()))


def test_outcomes_never_hold_forbidden_tokens():
    scores = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 0.0, -torch.inf]])
    assert {(o.accepted, o.token) for o in outcomes([2], [0.9], scores, 9)} == {(0, 0), (1, 1)}


ACCEPTANCE = [0.9, 0.5, 0.9]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (DraftLengthPolicy(), 3),
        (DraftLengthPolicy(epsilon=0.6), 1),
        (DraftLengthPolicy(epsilon=0.6, signal=Signal(Keep.CONFIDENT)), 1),
        (DraftLengthPolicy(epsilon=0.6, signal=Signal(Keep.NOTHING)), 0),
        (DraftLengthPolicy(epsilon=0.6, signal=Signal(Keep.ALL)), 3),
        (DraftLengthPolicy(reach=0.41), 2),  # 0.9, 0.45, 0.405
        (DraftLengthPolicy(reach=0.4), 3),
        (DraftLengthPolicy(reach=0.95, signal=Signal(Keep.ALL)), 0),
        (DraftLengthPolicy(reach=0.0, signal=Signal(Keep.NOTHING)), 3),
    ],
)
def test_what_is_kept_of_a_draft(rule, kept):
    assert rule.kept(ACCEPTANCE) == kept


def test_a_signal_judges_tokens_by_their_place_and_confidence():
    signal = Signal(Keep.ALL, offsets=(0.0, 1.0), slopes=(1.0, 0.0))
    sigmoid = 1 / (1 + math.exp(-1))
    expected = [0.25, sigmoid, sigmoid]
    assert signal.acceptance([0.25, 0.1, 0.9]) == pytest.approx(expected)
    assert signal.acceptance([1.0])[0] == pytest.approx(0.999)


def test_calibration_learns_acceptance_and_forgets():
    calibration = Calibration()
    assert calibration.estimate(0.05) == pytest.approx(0.525)
    assert calibration.estimate(1.0) == pytest.approx(0.975)
    generator = random.Random(0)
    for _ in range(3000):
        value = generator.random()
        calibration.observe(value, generator.random() < value**0.5)
    for value in (0.15, 0.4, 0.9):
        assert calibration.estimate(value) == pytest.approx(value**0.5, abs=0.1)
    for _ in range(3000):
        calibration.observe(0.9, False)
    assert calibration.estimate(0.95) < 0.05
    assert calibration.estimate(0.15) == pytest.approx(0.15**0.5, abs=0.1)


def test_confidence_counts_the_noise_where_the_target_chooses_by_it_too():
    model = tiny_model("llama")
    noise = gumbel_noise(3, 3, TARGET, VOCABULARY)
    logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1:].float()
    for params, expected in (
        (SamplingParams(), logits),
        (SamplingParams(temperature=0.8, seed=3, acceptance="rejection"), logits),
        (SamplingParams(temperature=0.8, seed=3), (logits / 0.8).log_softmax(-1) + noise),
    ):
        drafter = DraftWorker(CausalRunner(model))
        drafter.open(0, Opening([5, 6, 7], params, 40, VOCABULARY, frozenset()))
        chain = drafter.draft(0, CommitUpdate(3), 1, DraftLengthPolicy())
        assert chain.confidences == pytest.approx(confidence(expected), rel=1e-4)


def test_confidence_is_the_largest_share_of_each_row():
    assert confidence(torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])) == pytest.approx(
        [0.75, 0.5]
    )


def test_noise_belongs_to_its_position_and_stream():
    noise = gumbel_noise(1, 2, TARGET, 50)
    gumbel_noise.cache_clear()
    assert torch.equal(gumbel_noise(1, 2, TARGET, 50), noise)
    for seed, position, stream in ((2, 2, TARGET), (1, 3, TARGET), (1, 2, DRAFT), (1, 2, ACCEPT)):
        assert not torch.equal(gumbel_noise(seed, position, stream, 50), noise)
    # A smaller vocabulary sees the same noise: padding a vocabulary changes no text.
    assert torch.equal(gumbel_noise(1, 2, TARGET, 20), noise[:20])


def test_coupling_shares_the_targets_noise_and_rejection_does_not():
    flat = torch.zeros(1000)
    coupled, apart = GumbelSampler(3, coupled=True), GumbelSampler(3, coupled=False)
    assert coupled.token(flat, 9, DRAFT) == coupled.token(flat, 9, TARGET)
    assert apart.token(flat, 9, TARGET) == coupled.token(flat, 9, TARGET)
    assert apart.token(flat, 9, DRAFT) != apart.token(flat, 9, TARGET)


def test_warp_follows_transformers_order():
    params = SamplingParams(temperature=0.5, top_k=2, repetition_penalty=2.0, seed=0)
    logits = torch.tensor([[2.0, 1.5, 1.0], [2.0, 1.5, 1.0]])
    log_p = warp(logits, [[0], [1, 1]], params.processors())
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
        {"top_k": -1},
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
