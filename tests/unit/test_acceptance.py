"""Calibration of confidences by the outcomes of verified tokens."""

import random

import pytest

from specbranch.policy.acceptance import AcceptanceModel, Calibration


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


def test_the_mean_is_that_of_all_tokens():
    calibration = Calibration()
    for i in range(2000):
        calibration.observe((i % 10) / 10, i % 4 != 0)
    assert calibration.mean == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("coupled", [True, False])
def test_confidences_with_and_without_noise_are_calibrated_apart(coupled):
    """The same confidence has another meaning where it includes the target's noise."""
    model = AcceptanceModel()
    initial = Calibration().estimate(0.9)
    for _ in range(200):
        model.of(coupled).observe(0.9, False)
    assert model.of(coupled).estimate(0.9) < 0.5
    assert model.of(not coupled).estimate(0.9) == initial
    assert model.ngram.estimate(0.9) == Calibration(least=0.0).estimate(0.9)


def test_a_reset_reaches_the_calibrations_in_use():
    model = AcceptanceModel()
    used = {"raw": model.of(False), "coupled": model.of(True), "ngram": model.ngram}
    before = {name: calibration.estimate(0.5) for name, calibration in used.items()}
    for calibration in used.values():
        calibration.observe(0.5, False)
    assert all(calibration.estimate(0.5) < before[name] for name, calibration in used.items())
    model.reset()
    assert {name: calibration.estimate(0.5) for name, calibration in used.items()} == before
    assert used["raw"] is model.of(False)
