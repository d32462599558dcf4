"""The draft length by its rules: confidence, cumulative acceptance, entropy, and H-RAD's signal."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch.policy.draft_length import DraftLengthPolicy, entropy, kept_length
from specbranch.policy.signal import Keep, Signal


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 1))
@settings(derandomize=True)
def test_kept_length_ends_before_the_first_doubtful_token(confidences, epsilon):
    kept = kept_length(confidences, epsilon)
    assert all(value >= epsilon for value in confidences[:kept])
    assert kept == len(confidences) or confidences[kept] < epsilon


ACCEPTANCE = [0.9, 0.5, 0.9]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (DraftLengthPolicy(), 3),
        (DraftLengthPolicy(epsilon=0.6), 1),
        (DraftLengthPolicy(epsilon=0.6, signal=Signal(Keep.CONFIDENT)), 1),
        (DraftLengthPolicy(epsilon=0.6, signal=Signal(Keep.NOTHING)), 0),
        (DraftLengthPolicy(epsilon=0.6, signal=Signal(Keep.ALL)), 3),
        (DraftLengthPolicy(min_cumulative_acceptance=0.41), 2),  # 0.9, 0.45, 0.405
        (DraftLengthPolicy(min_cumulative_acceptance=0.4), 3),
        (DraftLengthPolicy(min_cumulative_acceptance=0.95, signal=Signal(Keep.ALL)), 0),
        (DraftLengthPolicy(min_cumulative_acceptance=0.0, signal=Signal(Keep.NOTHING)), 3),
    ],
)
def test_how_much_of_a_draft_is_kept(rule, kept):
    assert rule.kept(ACCEPTANCE) == kept


def test_a_draft_stage_continues_while_the_next_token_is_worth_its_time():
    policy = DraftLengthPolicy(min_next_acceptance=0.4)
    assert policy.goes_on([0.9], 0.5)  # 0.45
    assert not policy.goes_on([0.9, 0.8], 0.5)  # 0.36
    assert policy.goes_on([], 0.4)
    assert DraftLengthPolicy().goes_on([0.0], 0.0)


def test_a_draft_ends_before_an_uncertain_distribution():
    uniform, certain = torch.full((4,), 0.25).log(), torch.tensor([1.0, 0.0, 0.0, 0.0]).log()
    assert entropy(uniform) == pytest.approx(math.log(4))
    assert entropy(certain) == 0
    policy = DraftLengthPolicy(max_entropy=1.0)
    assert policy.ends_before(uniform)
    assert not policy.ends_before(certain)
    assert not DraftLengthPolicy().ends_before(uniform)
