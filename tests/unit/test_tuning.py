"""The facade of the policy's estimates: the decisions that follow from rounds made by hand."""

import itertools
import logging

import pytest

from specbranch.config import SpeculativeConfig
from specbranch.metrics import Round
from specbranch.policy.gate import (
    FIRST_PAUSE,
    FIRST_REFRESH,
    LEAST_ROUNDS,
    MAX_REFRESH,
    PLAIN_ROUNDS,
    RECENT,
    TRIAL_SHARE,
)
from specbranch.policy.mode import MIN_STAY
from specbranch.policy.ngram import Lookup
from specbranch.policy.throughput import DECAY
from specbranch.policy.tuning import Tuning
from specbranch.timing import Span


def play(tuning, rounds, tokens, verification=10.0, drafting=0.0, width=4):
    """Rounds that commit so many tokens each and take `drafting` seconds besides."""
    for _ in range(rounds):
        done = Round(
            tokens=[1] * tokens,
            branching=Span(0, verification, (width,) * 5),
            verification=Span(0, verification, (5,)),
        )
        tuning.observe(done, verification + drafting)


def plainly(tuning, seconds=10.0):
    """Observe plain rounds until it speculates again; returns how many."""
    count = 0
    while not tuning.speculates:
        tuning.observe_plain(Span(0, seconds, (1,)))
        count += 1
    return count


def until_paused(tuning, drafting):
    """Observe rounds of one token each until speculation pauses; returns how many."""
    count = 0
    while not tuning.paused:
        plainly(tuning)
        play(tuning, 1, 1, drafting=drafting)
        count += 1
    return count


class TestTuning:
    def test_given_values_are_used(self):
        tuning = Tuning(SpeculativeConfig(5, 0.3, 4, speculate="always"))
        play(tuning, 20, 1, drafting=30)
        assert tuning.speculates
        assert tuning.gamma == 5
        assert tuning.step is None
        rule = tuning.rule(None)
        assert (rule.epsilon, rule.min_cumulative_acceptance) == (0.3, None)

    def test_drafts_as_long_as_a_verification_takes(self):
        tuning = Tuning(SpeculativeConfig())
        play(tuning, 20, 3, verification=10.0)  # five steps of 2 s
        assert tuning.gamma == 5
        play(tuning, 200, 3, verification=100.0)
        assert tuning.gamma == 5  # its steps take ten times as long, too

    def test_a_draft_token_must_be_worth_its_time(self):
        tuning = Tuning(SpeculativeConfig())
        play(tuning, 50, 4, verification=10.0, drafting=6.0)  # a token in 4 s
        sequential, overlapped = tuning.rule(None, serial=True), tuning.rule(None)
        assert sequential.min_next_acceptance == pytest.approx(2 / 4)  # a step of 2 s
        assert overlapped.min_next_acceptance is None
        # No verification was seen to take longer for more tokens.
        assert overlapped.min_cumulative_acceptance == sequential.min_cumulative_acceptance == 0

    def test_a_sequential_draft_is_as_long_as_one_step_more_pays(self):
        """Half a second is spent on messages, however short the draft is."""
        tuning = Tuning(SpeculativeConfig())
        for number in range(100):
            steps = 1 + number % 5
            drafting = Span(0, 0.5 + 0.1 * steps, (1,) * steps)
            done = Round(tokens=[1, 1], drafting=drafting, verification=Span(0, 3.0, (5,)))
            tuning.observe(done, 4.0)
        assert tuning.rule(None, serial=True).min_next_acceptance == pytest.approx(
            0.1 * 2 / 4, rel=0.01
        )

    def test_pauses_a_slow_draft_and_says_why_without_a_warning(self, caplog):
        """A warning would be printed in the middle of streamed text."""
        tuning = Tuning(SpeculativeConfig())
        assert tuning.paused_reason is None
        with caplog.at_level(logging.INFO, "specbranch"):
            assert plainly(tuning) == PLAIN_ROUNDS + 1  # the first one is not measured
            pauses = []
            for _ in range(4):
                until_paused(tuning, drafting=10)
                reason = tuning.paused_reason
                assert reason == "with the draft, decoding ran at 0.50 of its speed without it"
                pauses.append(plainly(tuning))
                assert tuning.paused_reason is None
        # A round that takes twice as long as plain decoding's loses one token's time.
        lost = sum(DECAY**i for i in range(LEAST_ROUNDS + 1))
        assert pauses == [max(FIRST_PAUSE * 2**i, int(lost / TRIAL_SHARE)) for i in range(4)]
        assert [record.levelno for record in caplog.records] == [logging.INFO] * 4
        assert all("at 0.50 of its speed" in record.getMessage() for record in caplog.records)

    def test_speculation_continues_until_the_text_changes(self):
        tuning = Tuning(SpeculativeConfig())
        plainly(tuning)
        play(tuning, 300, 2, drafting=5)
        assert not tuning.paused
        play(tuning, 200, 1, drafting=5)
        assert tuning.paused

    def test_plain_decoding_is_timed_again(self):
        """A new process is slow: compared with its first forwards, any draft would pay for ever."""
        tuning = Tuning(SpeculativeConfig())
        plainly(tuning, seconds=30.0)
        play(tuning, FIRST_REFRESH - 1, 1, drafting=10)
        assert tuning.speculates
        play(tuning, 1, 1, drafting=10)
        assert plainly(tuning) == PLAIN_ROUNDS
        assert not tuning.paused
        rounds = until_paused(tuning, drafting=10)
        assert FIRST_REFRESH < rounds < 10 * FIRST_REFRESH
        timed, count = [], 0
        tuning = Tuning(SpeculativeConfig())
        plainly(tuning)
        while len(timed) < 12:
            play(tuning, 1, 4)
            count += 1
            if plainly(tuning):
                timed.append(count)
                count = 0
        assert timed[:3] == [FIRST_REFRESH, 2 * FIRST_REFRESH, 4 * FIRST_REFRESH]
        assert timed[-1] == MAX_REFRESH

    @pytest.mark.parametrize(("loss", "least", "most"), [(10, 6, 6), (2, 10, 20)])
    def test_a_smaller_loss_takes_longer_to_judge(self, loss, least, most):
        tuning = Tuning(SpeculativeConfig())
        plainly(tuning)
        assert least <= until_paused(tuning, drafting=loss) <= most

    def test_the_draft_must_beat_lookup_alone(self):
        """Two tokens a round are twice plain decoding, but no more than lookup alone commits."""

        def until_paused(committed):
            tuning = Tuning(SpeculativeConfig())
            plainly(tuning)
            for count in range(300):
                if tuning.paused:
                    return count
                done = Round(
                    tokens=[1, 1],
                    branching=Span(0, 10, (4,) * 5),
                    verification=Span(0, 10.0, (5,)),
                )
                tuning.observe(done, 10.0, [Lookup(chain=3, committed=committed)])
                if not tuning.speculates and not tuning.paused:
                    plainly(tuning)
            return None

        assert until_paused(1) is None
        assert until_paused(2) is None
        assert LEAST_ROUNDS < until_paused(4) < 10

    def test_always_never_pauses(self):
        tuning = Tuning(SpeculativeConfig(speculate="always"))
        tuning.begin(competing=True)
        assert tuning.speculates and tuning.overlaps
        play(tuning, 100, 1, drafting=50)
        assert tuning.speculates


def both_modes(seconds, rounds, tokens=3):
    """Observe rounds of the given durations by mode; returns whether each was overlapped."""
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning, seconds=1000.0)
    found = []
    for _ in range(rounds):
        found.append(tuning.overlaps)
        assert tuning.gamma >= 1 and tuning.rule(None, serial=True).min_next_acceptance is not None
        span = Span(0, seconds[tuning.overlaps], (5,))
        tuning.observe(Round(tokens=[1] * tokens, verification=span), span.seconds)
        plainly(tuning, seconds=1000.0)
    return found


@pytest.mark.parametrize("better", [True, False])
def test_the_faster_mode_is_found(better):
    found = both_modes({better: 10.0, not better: 15.0}, 400)
    assert set(found[:40]) == {True, False}
    assert found[100:].count(better) > 0.9 * len(found[100:])


def test_a_mode_is_kept_for_some_rounds():
    found = both_modes({True: 10.0, False: 10.0}, 300)
    changes = [i for i in range(1, 300) if found[i] != found[i - 1]]
    assert changes
    assert min(b - a for a, b in itertools.pairwise(changes)) >= MIN_STAY


def test_the_mode_follows_a_change_of_the_text():
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning, seconds=1000.0)
    seconds = {True: 10.0, False: 14.0}
    for number in range(1500):
        if number == 500:
            seconds = {True: 20.0, False: 14.0}
        span = Span(0, seconds[tuning.overlaps], (5,))
        tuning.observe(Round(tokens=[1, 1, 1], verification=span), span.seconds)
        plainly(tuning, seconds=1000.0)
        if number in (499, 1499):
            assert tuning.overlaps == (number == 499)


def test_the_other_mode_is_measured_again():
    """A mode that was slow when it was measured need not stay slow."""
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning, seconds=1000.0)
    seconds = {True: 10.0, False: 30.0}
    found = []
    for number in range(300):
        if number == 30:
            seconds[False] = 5.0
        tuning.rule(None, serial=True)
        found.append(tuning.overlaps)
        span = Span(0, seconds[tuning.overlaps], (5,))
        tuning.observe(Round(tokens=[1, 1, 1], verification=span), span.seconds)
        plainly(tuning, seconds=1000.0)
    assert found[29]
    assert found[150:].count(False) > 0.9 * len(found[150:])


def test_there_is_one_mode_where_the_target_gains_nothing_alone():
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    play(tuning, 200, 3)
    assert tuning.overlaps


def test_the_other_mode_is_tried_before_a_pause():
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning)
    for _ in range(LEAST_ROUNDS + 3):
        assert not tuning.overlaps and not tuning.paused
        play(tuning, 1, 1, drafting=50)
        if tuning.overlaps:
            break
    assert tuning.overlaps and not tuning.paused
    overlapped = 0
    for _ in range(300):
        overlapped += tuning.overlaps
        play(tuning, 1, 3, drafting=0 if tuning.overlaps else 50)
        plainly(tuning)
        assert not tuning.paused
    assert overlapped > 250


@pytest.mark.parametrize(("loss", "again"), [(2, True), (20, False)])
def test_a_new_text_resumes_speculation_that_nearly_paid(loss, again):
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    until_paused(tuning, drafting=loss)
    tuning.begin(competing=False)
    assert tuning.speculates == again != tuning.paused


def test_speculation_resumes_when_the_text_stops_repeating_itself():
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    while not tuning.paused:  # three tokens a round, where lookup alone commits five
        done = Round(tokens=[1] * 3, verification=Span(0, 10.0, (5,)))
        tuning.observe(done, 10.0, [Lookup(chain=5, committed=5)])
        if not tuning.paused:
            plainly(tuning)
    for _ in range(4 * RECENT):
        tuning.observe_plain(Span(0, 10.0, (6,)), tokens=5)
    assert tuning.paused
    rounds = 0
    while tuning.paused:
        tuning.observe_plain(Span(0, 10.0, (1,)))
        rounds += 1
    assert rounds < RECENT


def test_a_draft_slower_than_plain_decoding_stays_off():
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    until_paused(tuning, drafting=1)
    for _ in range(4 * RECENT):
        assert tuning.paused
        tuning.observe_plain(Span(0, 10.0, (1,)))


def test_the_pause_after_a_failed_trial_covers_both_modes():
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning)
    trials, pauses = [], []
    for _ in range(2):
        modes = []
        while not tuning.paused:
            modes.append(tuning.overlaps)
            play(tuning, 1, 1, drafting=10)
            if not tuning.paused:
                plainly(tuning)
        trials.append(modes)
        pauses.append(plainly(tuning))
    assert set(trials[0]) == {True, False}
    assert len(set(trials[1])) == 1
    # Each round took the time of two tokens; the first one of each mode is not measured.
    assert pauses[0] > 0.9 * (len(trials[0]) - 2) / TRIAL_SHARE
