"""Branch points, candidates and outcomes, on distributions made by hand."""

import math

import pytest
import torch

from specbranch.policy.branching import (
    branch_count,
    candidates,
    confidence,
    outcomes,
    survivor,
)


def log(rows):
    return torch.tensor(rows).log()


def test_confidence_is_the_largest_share_of_each_row():
    assert confidence(torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])) == pytest.approx(
        [0.75, 0.5]
    )


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
    """The chain 0 1 with acceptance 0.5 and 0.8, computed by hand."""
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
    # The draft would append token 2, so that it is the best at the end.
    assert [(o.accepted, o.token) for o in found] == [(2, 2), (0, 1), (1, 0), (2, 1), (0, 2)]


def test_the_acceptance_of_the_token_after_the_chain_may_be_given():
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
