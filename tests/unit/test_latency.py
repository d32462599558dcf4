"""Latency lines fitted to measurements made by hand."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbranch.policy.latency import (
    LatencyEstimate,
    LatencyLine,
    LatencyModel,
    Mode,
    best_width,
    cumulative_acceptance,
)


def test_cumulative_acceptance_is_a_running_product():
    assert cumulative_acceptance([0.5, 0.5, 0.0, 1.0]) == [0.5, 0.25, 0.0, 0.0]
    assert cumulative_acceptance([]) == []


def test_a_line_is_found_in_noisy_measurements():
    estimate = LatencyEstimate()
    assert not estimate.known
    estimate.observe(4, 0.5)
    assert estimate.line == LatencyLine(0.5)  # one size tells nothing about others
    noise = random.Random(0)
    for _ in range(300):
        n = noise.randint(1, 12)
        estimate.observe(n, (10 + 2 * n) * noise.uniform(0.9, 1.1))
    assert estimate.line.seconds(1) == pytest.approx(12, rel=0.1)
    assert estimate.line.seconds(12) == pytest.approx(34, rel=0.1)
    before = estimate.line.seconds(6)
    estimate.observe(6, 1000 * before)  # the machine was busy with something else
    assert estimate.line.seconds(6) < 1.1 * before


@given(st.lists(st.tuples(st.integers(1, 16), st.floats(1e-4, 1.0)), min_size=1, max_size=60))
def test_latencies_are_never_negative(samples):
    estimate = LatencyEstimate()
    for n, seconds in samples:
        estimate.observe(n, seconds)
        assert estimate.line.base >= -1e-12
        assert estimate.line.each >= 0


def test_a_step_is_as_wide_as_it_pays():
    # By 1, 2 and 3 branches: 0.5 / 1.1, 0.9 / 1.2, 1.0 / 1.3 a second.
    assert best_width([0.5, 0.4, 0.1], LatencyLine(1.0, 0.1)) == 3
    assert best_width([0.5, 0.4, 0.01], LatencyLine(1.0, 0.1)) == 2
    assert best_width([0.5, 0.05, 0.01], LatencyLine(1.0, 0.2)) == 1
    assert best_width([0.5, 0.4, 0.0], LatencyLine(1.0)) == 2


def test_verifications_of_the_two_modes_are_measured_apart():
    model = LatencyModel()
    model.verification[Mode.OVERLAPPED].observe(4, 8.0)
    assert not model.verification[Mode.SEQUENTIAL].known
    assert model.verification_alone(Mode.OVERLAPPED) == LatencyLine(8.0)
    model.verification[Mode.SEQUENTIAL].observe(4, 5.0)
    assert model.verification_alone(Mode.OVERLAPPED) == LatencyLine(5.0)


def test_steps_during_a_verification():
    model = LatencyModel()
    assert model.steps_during(8) is None
    model.verification[Mode.OVERLAPPED].observe(4, 8.0)
    assert model.steps_during(8) is None
    model.observe_steps((), 1.0)
    assert not model.step.known
    model.observe_steps((2, 2, 2), 9.0)  # 3 s each
    assert model.steps_during(8) == 2
    # Only an overlapped verification leaves time for them.
    model.verification[Mode.SEQUENTIAL].observe(4, 100.0)
    assert model.steps_during(8) == 2


def test_one_step_more_takes_no_messages():
    model = LatencyModel()
    model.observe_steps((1, 1), 6.0)
    assert model.extra_step_seconds() == 3.0
    model.draft_stage.observe(2, 7.0)  # one size does not tell the slope
    assert model.extra_step_seconds() == 3.0
    for steps in (1, 2, 3, 4):
        model.draft_stage.observe(steps, 5.0 + steps)
    assert model.extra_step_seconds() == pytest.approx(1.0, abs=0.01)


def test_the_other_mode():
    assert [mode.other for mode in (Mode.SEQUENTIAL, Mode.OVERLAPPED)] == [
        Mode.OVERLAPPED,
        Mode.SEQUENTIAL,
    ]
