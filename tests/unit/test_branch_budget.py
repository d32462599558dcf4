"""The branch budget of a batch, compared with brute force on small cases."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbranch.policy.branch_budget import allot, select_growing
from specbranch.policy.branching import Outcome
from specbranch.policy.latency import LatencyLine

# Few different values, so that ties are frequent.
PROBABILITIES = st.integers(0, 8).map(lambda n: n / 8)
BATCHES = st.lists(st.lists(PROBABILITIES, max_size=3), max_size=3)


def planned(batch):
    return [[Outcome(i, row, p) for i, p in enumerate(text)] for row, text in enumerate(batch)]


@given(BATCHES, st.integers(0, 10))
def test_no_other_choice_of_outcomes_is_more_probable(batch, budget):
    texts = planned(batch)
    everything = [outcome for text in texts for outcome in text]
    kept = allot(texts, budget)
    count = min(budget, len(everything))
    chosen = [outcome for text in kept for outcome in text]
    assert len(kept) == len(texts)
    assert len(chosen) == count
    totals = [sum(o.probability for o in choice) for choice in combinations(everything, count)]
    assert sum(outcome.probability for outcome in chosen) == max(totals)


@given(BATCHES, st.integers(0, 10))
def test_a_text_keeps_its_own_outcomes_in_their_order(batch, budget):
    texts = planned(batch)
    for text, kept in zip(texts, allot(texts, budget), strict=True):
        assert kept == [outcome for outcome in text if outcome in kept]


def test_of_equal_outcomes_the_earlier_texts_are_kept():
    texts = planned([[0.1, 0.5], [0.5, 0.5], [0.9]])
    assert allot(texts, 1) == [[], [], texts[2]]
    assert allot(texts, 2) == [[texts[0][1]], [], texts[2]]
    assert allot(texts, 3) == [[texts[0][1]], [texts[1][0]], texts[2]]
    assert allot(texts, 9) == texts


VALUES = st.lists(PROBABILITIES, min_size=1, max_size=6)


@given(VALUES, st.integers(1, 20), st.integers(0, 5))
def test_no_other_choice_of_branches_has_more_value_per_second(values, base, each):
    line = LatencyLine(base, each)
    selected = select_growing(values, line)
    best = max(
        sum(choice) / line.seconds(count)
        for count in range(1, len(values) + 1)
        for choice in combinations(values, count)
    )
    assert sum(values[i] for i in selected) / line.seconds(len(selected)) == best
    assert [(-values[i], i) for i in selected] == sorted((-values[i], i) for i in selected)


@pytest.mark.parametrize("line", [None, LatencyLine(1.0, 0.1)])
def test_without_branches_nothing_grows(line):
    assert select_growing([], line) == []


def test_without_a_latency_all_branches_grow():
    assert select_growing([0.1, 0.0, 0.9], None) == [0, 1, 2]
