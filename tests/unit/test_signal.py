"""H-RAD's signal: the acceptance that it predicts."""

import math

import pytest

from specbranch.policy.signal import Keep, Signal


def test_acceptance_depends_on_position_and_confidence():
    signal = Signal(Keep.ALL, offsets=(0.0, 1.0), slopes=(1.0, 0.0))
    sigmoid = 1 / (1 + math.exp(-1))
    expected = [0.25, sigmoid, sigmoid]
    assert signal.acceptance([0.25, 0.1, 0.9]) == pytest.approx(expected)
    assert signal.acceptance([1.0])[0] == pytest.approx(0.999)


def test_later_tokens_have_later_positions():
    signal = Signal(Keep.CONFIDENT, offsets=(0.0, 1.0, -1.0), slopes=(1.0, 0.5, 2.0))
    whole = signal.acceptance([0.3, 0.6, 0.9, 0.9])
    assert signal.acceptance([0.6, 0.9, 0.9], place=1) == whole[1:]
    assert whole[2] == whole[3]  # positions from γ on are treated like the last one
