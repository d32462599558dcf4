"""The speculation gate, on throughputs made by hand."""

import pytest

from specbranch.policy.gate import (
    FIRST_PAUSE,
    FIRST_REFRESH,
    LEAST_ROUNDS,
    MAX_PAUSE,
    PLAIN_ROUNDS,
    RECENT,
    TRIAL_SHARE,
    SpeculationGate,
)
from specbranch.policy.latency import LatencyLine
from specbranch.policy.ngram import Lookup
from specbranch.policy.throughput import DECAY, ThroughputEstimate

LEVEL = LatencyLine(10.0)  # a verification takes 10 s whatever it verifies


def throughput(tokens, seconds, rounds=200):
    estimate = ThroughputEstimate()
    for _ in range(rounds):
        estimate.observe(tokens, seconds)
    return estimate


def measured():
    """A gate that knows plain decoding: 10 s a token."""
    gate = SpeculationGate()
    while not gate.speculates:
        gate.observe_plain(10.0)
    return gate


def pause(gate, tokens=1, seconds=20.0, rounds=LEAST_ROUNDS + 1):
    gate.pause([throughput(tokens, seconds, rounds)], LEVEL)


def length_of_pause(gate):
    """Observe plain rounds until speculation resumes; returns how many."""
    rounds = 1
    while not gate.observe_plain(10.0):
        rounds += 1
    return rounds


def test_plain_decoding_is_measured_first():
    gate = SpeculationGate()
    assert not gate.plain_known
    assert not gate.speculates
    gate.observe_plain(1000.0)  # the target moves to other cores
    for _ in range(PLAIN_ROUNDS):
        assert not gate.speculates
        gate.observe_plain(10.0)
    assert gate.plain_known
    assert gate.speculates
    assert gate.pays([throughput(2, 15.0)], LEVEL)
    assert not gate.pays([throughput(1, 15.0)], LEVEL)


def test_verified_lookups_are_no_plain_decoding():
    gate = SpeculationGate()
    for _ in range(5):
        gate.observe_plain(30.0, rows=4)
    assert not gate.plain_known


@pytest.mark.parametrize(("rounds", "pays"), [(5, True), (200, False)])
def test_a_small_loss_needs_many_rounds_to_show(rounds, pays):
    assert measured().pays([throughput(1, 12.0, rounds)], LEVEL) == pays


def test_a_large_loss_shows_at_once():
    assert not measured().pays([throughput(1, 20.0, LEAST_ROUNDS + 1)], LEVEL)


def test_the_faster_mode_counts_and_one_of_few_rounds_does_not():
    gate = measured()
    slow, fast = throughput(1, 20.0), throughput(3, 20.0)
    assert gate.pays([slow, fast], LEVEL)
    assert not gate.pays([slow, throughput(3, 20.0, LEAST_ROUNDS)], LEVEL)


def test_speculation_must_beat_lookup_alone():
    gate = measured()
    for _ in range(20):
        gate.observe_lookups([Lookup(chain=3, committed=3)])
    assert not gate.pays([throughput(2, 10.0)], LEVEL)
    assert gate.pays([throughput(4, 10.0)], LEVEL)
    # Verifying four tokens takes 2.5 times as long as one here, so that lookup gains little.
    assert gate.pays([throughput(2, 10.0)], LatencyLine(5.0, 5.0))


def test_a_pause_says_why_and_ends():
    gate = measured()
    assert (gate.paused, gate.reason) == (False, None)
    pause(gate)
    assert (gate.paused, gate.speculates) == (True, False)
    assert gate.reason == "with the draft, decoding ran at 0.50 of its speed without it"
    rounds = length_of_pause(gate)
    assert (gate.paused, gate.speculates, gate.reason) == (False, True, None)
    # A round that takes twice as long as plain decoding's loses one token's time.
    lost = sum(DECAY**i for i in range(LEAST_ROUNDS + 1))
    assert rounds == max(FIRST_PAUSE, int(lost / TRIAL_SHARE))


def test_tokens_of_a_round_count_towards_the_end_of_a_pause():
    gate = measured()
    pause(gate, seconds=11.0)
    rounds = 1
    while not gate.observe_plain(10.0, rows=4, tokens=4):
        rounds += 1
    assert rounds == FIRST_PAUSE / 4


def test_pauses_double_up_to_a_limit():
    gate, lengths = measured(), []
    for _ in range(8):
        pause(gate, seconds=11.0)
        lengths.append(length_of_pause(gate))
    assert lengths == [min(FIRST_PAUSE * 2**i, MAX_PAUSE) for i in range(8)]


@pytest.mark.parametrize(("seconds", "resumes"), [(12.0, True), (20.0, False)])
def test_a_new_text_resumes_speculation_that_nearly_paid(seconds, resumes):
    gate = measured()
    pause(gate, seconds=seconds)
    assert gate.begin() == resumes
    assert gate.paused != resumes
    assert (gate.reason is None) == resumes


def test_a_new_text_changes_nothing_without_a_pause():
    gate = measured()
    assert not gate.begin()
    assert gate.speculates


def test_speculation_resumes_when_decoding_without_it_becomes_slow():
    gate = measured()
    for _ in range(20):
        gate.observe_lookups([Lookup(chain=5, committed=5)])
    pause(gate, tokens=3, seconds=10.0)  # three times plain decoding, but lookup commits five
    for _ in range(RECENT):
        assert not gate.observe_plain(10.0, rows=6, tokens=5)
    assert length_of_pause(gate) < RECENT


def test_plain_decoding_is_measured_again():
    gate = measured()
    for _ in range(FIRST_REFRESH - 1):
        gate.observe_speculative()
        assert gate.speculates
    gate.observe_speculative()
    assert not gate.speculates
    assert not gate.paused
    assert not gate.observe_plain(1000.0)  # the first one is not measured
    for _ in range(PLAIN_ROUNDS - 1):
        gate.observe_plain(40.0)
    assert gate.speculates
