"""The throughput of rounds made by hand."""

import pytest

from specbranch.policy.latency import OUTLIER
from specbranch.policy.throughput import ThroughputEstimate


def test_the_rate_is_tokens_per_second():
    estimate = ThroughputEstimate()
    for tokens in (1, 3) * 50:
        estimate.observe(tokens, 4.0)
    assert estimate.rate == pytest.approx(0.5, rel=0.01)
    assert estimate.recent_rate == pytest.approx(0.5, rel=0.05)


def test_the_recent_rate_follows_the_text_faster():
    estimate = ThroughputEstimate()
    for _ in range(200):
        estimate.observe(4, 1.0)
    for _ in range(30):
        estimate.observe(1, 1.0)
    assert 1 < estimate.recent_rate < 2 < estimate.rate < 4


def test_an_outlier_is_capped():
    estimate = ThroughputEstimate()
    for _ in range(20):
        estimate.observe(2, 1.0)
    seconds = estimate.seconds
    estimate.observe(2, 1000.0)
    assert estimate.seconds < seconds + OUTLIER


def test_shares_of_the_rounds():
    estimate = ThroughputEstimate()
    assert estimate.mean_chain == estimate.retrieved_share == estimate.draft_stage_share == 0
    for _ in range(400):
        estimate.observe(1, 1.0, chain=4, draft_stage=True)
        estimate.observe(1, 1.0, chain=8, retrieved=True, draft_stage=True)
        estimate.observe(1, 1.0, chain=6)
    assert estimate.mean_chain == pytest.approx(6, abs=0.1)
    assert estimate.retrieved_share == pytest.approx(1 / 3, abs=0.01)
    # A retrieved chain takes no draft step.
    assert estimate.draft_stage_share == pytest.approx(1 / 3, abs=0.01)
