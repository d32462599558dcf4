"""Lookup of what followed an earlier occurrence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specbranch.retrieval import LONGEST, TRIED, Match, Suffixes

TEXTS = st.lists(st.integers(0, 3), max_size=TRIED)


def suffixes(text: list[int], shortest: int = 2) -> Suffixes:
    made = Suffixes(shortest)
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
