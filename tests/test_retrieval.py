"""Lookup of what followed an earlier occurrence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specbranch.policy.acceptance import Calibration
from specbranch.policy.ngram import LONGEST, TRIED, Lookup, Match, Replay, SuffixIndex

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


def test_tokens_after_the_text_count() -> None:
    assert suffixes([1, 2, 3, 4]).match([1, 2], most=2) == Match(2, [3, 4])


def test_loop_goes_on() -> None:
    found = suffixes([5, 1, 2, 3, 1, 2, 3]).match(most=7)
    assert found == Match(3, [1, 2, 3, 1, 2, 3, 1])


def test_nothing_was_alike() -> None:
    assert suffixes([1, 2, 3]).match() is None
    assert suffixes([]).match() is None
    assert suffixes([1]).match([1]) is None


@given(TEXTS, TEXTS, st.integers(1, 3), st.integers(1, 8))
def test_as_by_trying_every_place(
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


def test_lookup_alone_is_played_over_the_text() -> None:
    played = replay([1, 2, 3, 4, 5, 1, 2])
    # 3 4 5 1 is verified, of which 3 4 is right.
    assert played.observe([3, 4]) == []
    assert played.observe([9, 8]) == [Lookup(4, 3), Lookup(0, 1)]  # nothing was like 4 9
    # After 8 1 there is nothing either; then 3 4 9 8, all right, and one more.
    assert played.observe([1, 2, 3, 4, 9, 8, 7]) == [Lookup(0, 1), Lookup(0, 1), Lookup(4, 5)]


@given(TEXTS, TEXTS, st.integers(0, 5), st.integers(0, 3))
def test_replayed_rounds_are_those_that_lookup_would_make(
    prompt: list[int], text: list[int], most: int, stop: int
) -> None:
    """By the rounds themselves: a chain is verified as far as it is right."""
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


def test_a_round_under_way_is_forgotten() -> None:
    played = replay([1, 2, 3, 4, 5, 1, 2])
    played.observe([3])
    assert played.chain(4) == [4, 5, 1, 2]
    assert played.observe([4]) == []
    assert played.observe([6]) == [Lookup(4, 2)]


def test_what_is_seldom_right_is_not_verified_until_it_is_again() -> None:
    calibration = Calibration(least=0.0)
    played = Replay([], calibration, 4, frozenset())

    def longest(follows: list[int]) -> int:
        """Of the chains verified while 1 2 goes on so each time."""
        return max(each.chain for token in follows for each in played.observe([1, 2, token]))

    assert longest([3, 3, 3, 3]) > 0
    longest(list(range(100, 200)))
    assert longest(list(range(200, 220))) == 0
    longest([3] * 30)
    assert longest([3] * 5) > 0
