"""The cost model and what is chosen by it, on costs and rounds made by hand."""

import itertools
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbranch.config import SpeculativeConfig
from specbranch.executors.base import Span
from specbranch.metrics import Round
from specbranch.policy.latency import (
    LatencyEstimate,
    LatencyLine,
    best_width,
    cumulative_acceptance,
)
from specbranch.policy.ngram import Lookup
from specbranch.policy.tuning import (
    FIRST_PAUSE,
    FIRST_REFRESH,
    LATELY,
    LEAST_JUDGED,
    MEMORY,
    PLAIN_ROUNDS,
    REFRESH,
    STAY,
    TRIALS,
    Tuning,
)


def test_reaches_are_products():
    assert cumulative_acceptance([0.5, 0.5, 0.0, 1.0]) == [0.5, 0.25, 0.0, 0.0]
    assert cumulative_acceptance([]) == []


def test_costs_are_found_out():
    running = LatencyEstimate()
    assert not running.known
    running.observe(4, 0.5)
    assert running.cost == LatencyLine(0.5)  # one size says nothing about others
    noise = random.Random(0)
    for _ in range(300):
        n = noise.randint(1, 12)
        running.observe(n, (10 + 2 * n) * noise.uniform(0.9, 1.1))
    assert running.cost.seconds(1) == pytest.approx(12, rel=0.1)
    assert running.cost.seconds(12) == pytest.approx(34, rel=0.1)
    before = running.cost.seconds(6)
    running.observe(6, 1000 * before)  # the machine had something else to do
    assert running.cost.seconds(6) < 1.1 * before


@given(st.lists(st.tuples(st.integers(1, 16), st.floats(1e-4, 1.0)), min_size=1, max_size=60))
def test_costs_are_never_negative(samples):
    running = LatencyEstimate()
    for n, seconds in samples:
        running.observe(n, seconds)
        assert running.cost.base >= -1e-12
        assert running.cost.each >= 0


def test_a_step_is_as_wide_as_it_pays():
    # By 1, 2 and 3 branches: 0.5 / 1.1, 0.9 / 1.2, 1.0 / 1.3 a second.
    assert best_width([0.5, 0.4, 0.1], LatencyLine(1.0, 0.1)) == 3
    assert best_width([0.5, 0.4, 0.01], LatencyLine(1.0, 0.1)) == 2
    assert best_width([0.5, 0.05, 0.01], LatencyLine(1.0, 0.2)) == 1
    assert best_width([0.5, 0.4, 0.0], LatencyLine(1.0)) == 2


def play(tuning, rounds, tokens, verification=10.0, drafting=0.0, width=4):
    """Rounds that commit so many tokens each, after a draft stage of that many seconds."""
    for _ in range(rounds):
        done = Round(
            tokens=[1] * tokens,
            branching=Span(0, verification, (width,) * 5),
            verification=Span(0, verification, (5,)),
        )
        tuning.observe(done, verification + drafting)


def plainly(tuning, seconds=10.0):
    """Plain rounds until it drafts again; how many."""
    count = 0
    while not tuning.speculates:
        tuning.observe_plain(Span(0, seconds, (1,)))
        count += 1
    return count


def until_paused(tuning, drafting):
    """Rounds that commit one token each, until drafting is turned off; how many."""
    count = 0
    while not tuning.paused:
        plainly(tuning)
        play(tuning, 1, 1, drafting=drafting)
        count += 1
    return count


class TestTuning:
    def test_what_is_given_is_used(self):
        tuning = Tuning(SpeculativeConfig(5, 0.3, 4, speculate="always"))
        play(tuning, 20, 1, drafting=30)
        assert tuning.speculates
        assert tuning.gamma == 5
        assert tuning.step is None
        assert (tuning.rule(None).epsilon, tuning.rule(None).reach) == (0.3, None)

    def test_drafts_as_long_as_a_verification_takes(self):
        tuning = Tuning(SpeculativeConfig())
        play(tuning, 20, 3, verification=10.0)  # five steps of 2 s
        assert tuning.gamma == 5
        play(tuning, 200, 3, verification=100.0)
        assert tuning.gamma == 5  # its steps take ten times as long, too

    def test_a_chance_is_worth_its_time(self):
        tuning = Tuning(SpeculativeConfig())
        play(tuning, 50, 4, verification=10.0, drafting=6.0)  # a token in 4 s
        serial, beside = tuning.rule(None, serial=True), tuning.rule(None)
        assert serial.onward == pytest.approx(2 / 4)  # a step of 2 s
        assert beside.onward is None
        assert (
            beside.reach == serial.reach == 0
        )  # a verification was never seen to take longer for more tokens

    def test_a_draft_in_turn_is_as_long_as_a_step_more_pays(self):
        """Half a second goes into messages, however short the draft is."""
        tuning = Tuning(SpeculativeConfig())
        for number in range(100):
            steps = 1 + number % 5
            drafting = Span(0, 0.5 + 0.1 * steps, (1,) * steps)
            done = Round(tokens=[1, 1], drafting=drafting, verification=Span(0, 3.0, (5,)))
            tuning.observe(done, 4.0)
        assert tuning.rule(None, serial=True).onward == pytest.approx(0.1 * 2 / 4, rel=0.01)

    def test_turns_off_what_does_not_pay_and_says_so_once(self, caplog):
        tuning = Tuning(SpeculativeConfig())
        with caplog.at_level(logging.WARNING, "specbranch"):
            assert plainly(tuning) == PLAIN_ROUNDS + 1  # the first one is no measure
            pauses = []
            for _ in range(4):
                until_paused(tuning, drafting=10)
                pauses.append(plainly(tuning))
        # A round that takes twice as long as plain decoding's loses one token's time.
        lost = sum(MEMORY**i for i in range(LEAST_JUDGED + 1))
        assert pauses == [max(FIRST_PAUSE * 2**i, int(lost / TRIALS)) for i in range(4)]
        [warning] = caplog.records
        assert "the draft is turned off: with it, decoding ran at 0.50" in warning.getMessage()

    def test_what_pays_stays_on_until_the_text_changes(self):
        tuning = Tuning(SpeculativeConfig())
        plainly(tuning)
        play(tuning, 300, 2, drafting=5)
        assert not tuning.paused
        play(tuning, 200, 1, drafting=5)
        assert tuning.paused

    def test_plain_decoding_is_timed_again(self):
        """A new process is slow: by its first forwards, drafting would pay for ever."""
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
        assert timed[-1] == REFRESH

    @pytest.mark.parametrize(("loss", "least", "most"), [(10, 6, 6), (2, 10, 20)])
    def test_the_less_is_lost_the_longer_it_takes_to_judge(self, loss, least, most):
        tuning = Tuning(SpeculativeConfig())
        plainly(tuning)
        assert least <= until_paused(tuning, drafting=loss) <= most

    def test_the_draft_has_to_beat_what_the_text_repeats(self):
        """Two tokens a round are twice plain decoding, and no more than lookup alone commits."""

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
        assert LEAST_JUDGED < until_paused(4) < 10

    def test_always_is_always(self):
        tuning = Tuning(SpeculativeConfig(speculate="always"))
        tuning.begin(competing=True)
        assert tuning.speculates and tuning.overlaps
        play(tuning, 100, 1, drafting=50)
        assert tuning.speculates


def both_ways(seconds, rounds, tokens=3):
    """Rounds that take so long beside the target and in turn; how each of them was drafted."""
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning, seconds=1000.0)
    found = []
    for _ in range(rounds):
        found.append(tuning.overlaps)
        assert tuning.gamma >= 1 and tuning.rule(None, serial=True).onward is not None
        span = Span(0, seconds[tuning.overlaps], (5,))
        tuning.observe(Round(tokens=[1] * tokens, verification=span), span.seconds)
        plainly(tuning, seconds=1000.0)
    return found


@pytest.mark.parametrize("better", [True, False])
def test_the_faster_way_to_draft_is_found(better):
    found = both_ways({better: 10.0, not better: 15.0}, 400)
    assert set(found[:40]) == {True, False}
    assert found[100:].count(better) > 0.9 * len(found[100:])


def test_ways_are_changed_for_a_while():
    found = both_ways({True: 10.0, False: 10.0}, 300)
    changes = [i for i in range(1, 300) if found[i] != found[i - 1]]
    assert changes
    assert min(b - a for a, b in itertools.pairwise(changes)) >= STAY


def test_the_other_way_is_tried_again_when_the_text_changes():
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


def test_the_other_way_is_tried_again_when_the_machine_changes():
    """What was slow once, when it was tried, need not stay so."""
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


def test_there_is_one_way_where_the_target_gains_nothing_alone():
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    play(tuning, 200, 3)
    assert tuning.overlaps


def test_the_other_way_is_tried_before_the_draft_is_turned_off():
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning)
    for _ in range(LEAST_JUDGED + 3):
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
def test_another_text_is_another_chance_for_a_draft_that_nearly_pays(loss, again):
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    until_paused(tuning, drafting=loss)
    tuning.begin(competing=False)
    assert tuning.speculates == again != tuning.paused


def test_the_draft_comes_back_when_the_text_repeats_itself_no_more():
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    while not tuning.paused:  # three tokens a round, where lookup alone commits five
        done = Round(tokens=[1] * 3, verification=Span(0, 10.0, (5,)))
        tuning.observe(done, 10.0, [Lookup(chain=5, committed=5)])
        if not tuning.paused:
            plainly(tuning)
    for _ in range(4 * LATELY):
        tuning.observe_plain(Span(0, 10.0, (6,)), tokens=5)
    assert tuning.paused
    rounds = 0
    while tuning.paused:
        tuning.observe_plain(Span(0, 10.0, (1,)))
        rounds += 1
    assert rounds < LATELY


def test_a_draft_that_does_not_beat_plain_decoding_stays_off():
    tuning = Tuning(SpeculativeConfig())
    plainly(tuning)
    until_paused(tuning, drafting=1)
    for _ in range(4 * LATELY):
        assert tuning.paused
        tuning.observe_plain(Span(0, 10.0, (1,)))


def test_a_trial_that_failed_in_both_ways_is_paid_for_and_then_made_in_one():
    tuning = Tuning(SpeculativeConfig())
    tuning.begin(competing=True)
    plainly(tuning)
    trials, pauses = [], []
    for _ in range(2):
        ways = []
        while not tuning.paused:
            ways.append(tuning.overlaps)
            play(tuning, 1, 1, drafting=10)
            if not tuning.paused:
                plainly(tuning)
        trials.append(ways)
        pauses.append(plainly(tuning))
    assert set(trials[0]) == {True, False}
    assert len(set(trials[1])) == 1
    # Each round took the time of two tokens; all but each way's first were measured.
    assert pauses[0] > 0.9 * (len(trials[0]) - 2) / TRIALS
