"""The choice between sequential and overlapped rounds, by latencies made by hand."""

from itertools import pairwise

import pytest

from specbranch.policy.latency import LatencyModel, Mode
from specbranch.policy.mode import LEAST_ROUNDS, MIN_STAY, RETRIAL, ModeSample, ModeSelector


def run(selector, seconds, rounds, latency=None, overhead=0.0, chain=4.0, retrieved_share=0.0):
    """Observe rounds whose verification takes so long by mode; returns the mode of each."""
    latency = latency or LatencyModel()
    modes = []
    for _ in range(rounds):
        mode = selector.mode
        modes.append(mode)
        latency.verification[mode].observe(5, seconds[mode])
        selector.observe(ModeSample(5, seconds[mode], overhead))
        selector.choose(chain, retrieved_share, latency)
    return modes


def both():
    selector = ModeSelector()
    selector.offer_sequential()
    return selector


def test_there_is_one_mode_unless_the_other_is_offered():
    selector = ModeSelector()
    assert not selector.other_untried
    modes = run(selector, {Mode.OVERLAPPED: 10.0, Mode.SEQUENTIAL: 1.0}, 200)
    assert set(modes) == {Mode.OVERLAPPED}


def test_the_sequential_mode_is_tried_first_and_offered_once():
    selector = both()
    assert selector.mode is Mode.SEQUENTIAL
    selector.change()
    selector.offer_sequential()
    assert selector.mode is Mode.OVERLAPPED


@pytest.mark.parametrize("better", list(Mode))
def test_the_faster_mode_is_used_most(better):
    modes = run(both(), {better: 10.0, better.other: 15.0}, 400)
    assert set(modes[:40]) == set(Mode)
    assert modes[100:].count(better) > 0.9 * len(modes[100:])


def test_a_mode_is_kept_for_some_rounds():
    modes = run(both(), dict.fromkeys(Mode, 10.0), 200)
    changes = [i for i, (before, after) in enumerate(pairwise(modes)) if before is not after]
    assert changes[0] == MIN_STAY - 1
    assert min(b - a for a, b in pairwise(changes)) >= MIN_STAY


def test_the_slower_mode_is_measured_again_ever_more_seldom():
    seconds = {Mode.OVERLAPPED: 10.0, Mode.SEQUENTIAL: 30.0}
    modes = run(both(), seconds, 500)
    pairs = list(pairwise(modes))
    left = [i for i, pair in enumerate(pairs) if pair == (Mode.OVERLAPPED, Mode.SEQUENTIAL)]
    back = [i for i, pair in enumerate(pairs) if pair == (Mode.SEQUENTIAL, Mode.OVERLAPPED)]
    stays = [b - a for a, b in zip(back, left, strict=False)]
    assert stays[:3] == [RETRIAL, 2 * RETRIAL, 4 * RETRIAL]


def test_the_other_mode_is_untried_until_it_was_measured():
    selector = both()
    assert selector.other_untried
    selector.change()
    for _ in range(LEAST_ROUNDS):
        assert selector.mode is Mode.OVERLAPPED
        selector.observe(ModeSample(5, 10.0, 0.0))
    selector.change()
    assert not selector.other_untried


def measured(draft_stage_seconds):
    """A selector whose two modes differ in nothing but their draft stages."""
    selector, latency = both(), LatencyModel()
    for _ in Mode:
        latency.verification[selector.mode].observe(5, 10.0)
        for _ in range(LEAST_ROUNDS):
            selector.observe(ModeSample(5, 10.0, 0.0))
        selector.change()
    for steps in range(1, 6):
        latency.draft_stage.observe(steps, draft_stage_seconds)
    return selector, latency


@pytest.mark.parametrize(("share", "retrieved", "changes"), [(0.5, 0.0, True), (0.5, 0.8, False)])
def test_draft_stages_count_as_often_as_they_are_needed(share, retrieved, changes):
    """A sequential round has a draft stage unless its chain is retrieved."""
    selector, latency = measured(3.0)
    selector.draft_stage_share = share
    for _ in range(MIN_STAY - 1):
        assert not selector.choose(4, retrieved, latency)
    assert selector.mode is Mode.SEQUENTIAL
    assert selector.choose(4, retrieved, latency) == changes
    assert (selector.mode is Mode.OVERLAPPED) == changes


def test_time_besides_the_models_counts():
    selector, latency = measured(0.0)
    for _ in range(LEAST_ROUNDS + 1):
        selector.observe(ModeSample(5, 10.0, 2.0))  # sequential rounds
    for _ in range(MIN_STAY):
        selector.choose(4, 0.0, latency)
    assert selector.mode is Mode.OVERLAPPED
