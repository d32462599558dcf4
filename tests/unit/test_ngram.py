"""N-gram lookup: matches, and the replay of decoding by lookup alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specbranch.policy.acceptance import Calibration
from specbranch.policy.ngram import (
    LONGEST,
    TRIED,
    Lookup,
    Match,
    NgramIndex,
    Replay,
    SuffixIndex,
)

TEXTS = st.lists(st.integers(0, 3), max_size=TRIED)


def suffixes(text: list[int], shortest: int = 2) -> SuffixIndex:
    made = SuffixIndex(shortest)
    made.extend(text)
    return made


def test_longest_match_wins_over_latest() -> None:
    found = suffixes([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]).match(most=2)
    assert found == Match(3, [4, 9])


def test_latest_match_wins_among_equals() -> None:
    assert suffixes([1, 2, 7, 1, 2, 8, 1, 2]).match(most=1) == Match(2, [8])


def test_assumed_tokens_after_the_text_are_part_of_the_match() -> None:
    assert suffixes([1, 2, 3, 4]).match([1, 2], most=2) == Match(2, [3, 4])


def test_a_loop_is_continued() -> None:
    found = suffixes([5, 1, 2, 3, 1, 2, 3]).match(most=7)
    assert found == Match(3, [1, 2, 3, 1, 2, 3, 1])


def test_no_match() -> None:
    assert suffixes([1, 2, 3]).match() is None
    assert suffixes([]).match() is None
    assert suffixes([1]).match([1]) is None


@given(TEXTS, TEXTS, st.integers(1, 3), st.integers(1, 8))
def test_the_match_is_that_of_an_exhaustive_search(
    text: list[int], more: list[int], shortest: int, most: int
) -> None:
    path = text + more
    best, length = None, shortest - 1
    for place in range(len(text) - 1, 0, -1):
        n = 0
        while n < min(place, LONGEST) and path[place - 1 - n] == path[len(path) - 1 - n]:
            n += 1
        if n > length:
            best, length = place, n
    found = suffixes(text, shortest).match(more, most)
    if best is None:
        assert found is None
        return
    for i in range(most):
        path.append(path[best + i])
    assert found == Match(length, path[-most:])


def replay(prompt: list[int], most: int = 4, stop: int = -1) -> Replay:
    return Replay(prompt, Calibration(least=1.0), most, frozenset({stop}))


def test_replayed_rounds_by_hand() -> None:
    played = replay([1, 2, 3, 4, 5, 1, 2])
    # 3 4 5 1 is verified, of which 3 4 is right.
    assert played.observe([3, 4]) == []
    assert played.observe([9, 8]) == [Lookup(4, 3), Lookup(0, 1)]  # 4 9 has no match
    # 8 1 has no match either; then 3 4 9 8 is verified and accepted, with one token more.
    assert played.observe([1, 2, 3, 4, 9, 8, 7]) == [Lookup(0, 1), Lookup(0, 1), Lookup(4, 5)]


@given(TEXTS, TEXTS, st.integers(0, 5), st.integers(0, 3))
def test_replayed_rounds_are_those_that_lookup_would_make(
    prompt: list[int], text: list[int], most: int, stop: int
) -> None:
    """Each round is made by itself: a chain is accepted as far as it is right."""
    made, place = [], 0
    rounds = replay(prompt, most, stop)
    while True:
        chain = rounds.chain(most)
        rest = text[place:]
        pairs = zip(chain, rest, strict=False)
        wrong = (i for i, (ours, true) in enumerate(pairs) if ours != true)
        right = next(wrong, min(len(chain), len(rest)))
        if right >= len(rest):
            break
        made.append(Lookup(len(chain), right + 1))
        rounds.observe(rest[: right + 1])
        place += right + 1
    played = replay(prompt, most, stop)
    assert [each for token in text for each in played.observe([token])] == made


def test_an_unfinished_round_is_dropped() -> None:
    played = replay([1, 2, 3, 4, 5, 1, 2])
    played.observe([3])
    assert played.chain(4) == [4, 5, 1, 2]
    assert played.observe([4]) == []
    assert played.observe([6]) == [Lookup(4, 2)]


def test_proposals_stop_while_they_are_seldom_right() -> None:
    calibration = Calibration(least=0.0)
    played = Replay([], calibration, 4, frozenset())

    def longest(follows: list[int]) -> int:
        """Length of the longest chain verified, where 1 2 is followed by each of these tokens."""
        return max(each.chain for token in follows for each in played.observe([1, 2, token]))

    assert longest([3, 3, 3, 3]) > 0
    longest(list(range(100, 200)))
    assert longest(list(range(200, 220))) == 0
    longest([3] * 30)
    assert longest([3] * 5) > 0


def test_a_continuation_ends_with_the_text_and_needs_a_likely_first_token() -> None:
    prompt = [1, 2, 3, 4, 5, 1, 2]
    index = NgramIndex(prompt, Calibration(least=1.0))
    assert index.continuation([], 4, 0.5, frozenset({4})) == Match(2, [3, 4])
    assert index.continuation([], 0, 0.5, frozenset()) is None
    doubtful = NgramIndex(prompt, Calibration(least=0.0))
    assert doubtful.continuation([], 4, 0.5, frozenset()) is None
    # With acceptance 1/3, 1/2, …, the third token is accepted with a probability of 0.1.
    assert doubtful.continuation([], 4, 0.3, frozenset()) == Match(2, [3, 4])


def test_committed_tokens_update_the_calibration() -> None:
    calibration = Calibration(least=0.5)
    index = NgramIndex([1, 2, 3, 1, 2], calibration)
    before = calibration.estimate(1 / 3)  # the strength of a match of two tokens
    index.learn([9])
    assert calibration.estimate(1 / 3) < before
    assert index.length == 6
