"""The formulas against simulations of the rounds, and against the decoders in virtual time.

Each comparison allows five standard errors: a right formula fails one with one seed in a million,
and the seeds are fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from specbranch.bench.theory import (
    accepted_probability,
    best_gamma,
    cut_specbranch_speedup,
    expected_accepted,
    paper_ideal_latency,
    paper_rollback_latency,
    pearl_latency,
    pearl_speedup,
    specbranch_speedup,
    speedup_limit,
    sps_speedup,
)
from specbranch.config import SpeculativeConfig
from specbranch.engine.driver import Driver
from specbranch.engine.executor_pair import ExecutorPair
from specbranch.errors import InputError
from specbranch.executors.virtual import Profile, VirtualClock, VirtualExecutor
from specbranch.methods.base import MethodContext
from specbranch.methods.registry import METHODS
from specbranch.policy.tuning import Tuning
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import TokenSequence
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import OpenText
from specbranch.workers.requests import OpenRequest
from specbranch.workers.verifier import Verifier
from tests.tables import Table, TableRunner

pytestmark = pytest.mark.slow

ERRORS = 5.0
ROUNDS = 40_000
Rounds = tuple[np.ndarray, np.ndarray]  # tokens committed and time taken, of each
ALPHAS = [0.0, 0.3, 0.6, 0.9, 0.98, 1.0]
SHAPES = [(1, 4.0), (3, 10.0), (8, 8.0), (12, 5.5)]
CASES = list(itertools.product(ALPHAS, SHAPES))


def accepted(rng: np.random.Generator, alpha: float, gamma: int, rounds: int) -> np.ndarray:
    """How many of γ draft tokens are accepted, left to right, in each of the rounds."""
    wrong = rng.random((rounds, gamma)) >= alpha
    return np.where(wrong.any(1), wrong.argmax(1), gamma)


def sps_rounds(rng: np.random.Generator, alpha: float, gamma: int, c: float) -> Rounds:
    tokens = accepted(rng, alpha, gamma, ROUNDS) + 1
    return tokens, np.full(ROUNDS, gamma + c)


def pearl_rounds(rng: np.random.Generator, alpha: float, gamma: int, c: float) -> Rounds:
    tokens, waiting = np.ones(ROUNDS), False
    for i, right in enumerate(accepted(rng, alpha, gamma, ROUNDS)):
        if waiting:  # post-verify: what waited, and the first that was drafted meanwhile
            tokens[i] = min(right + 1, gamma)
            waiting = right == gamma
        else:  # pre-verify: the first alone
            waiting = right > 0
    return tokens, np.full(ROUNDS, float(max(gamma, c)))


def specbranch_rounds(
    rng: np.random.Generator, alpha: float, gamma: int, c: float, hit: float, step: float
) -> Rounds:
    """`step` is what a draft step of all branches takes."""
    right = accepted(rng, alpha, gamma, ROUNDS)
    survived = (right == gamma) & (rng.random(ROUNDS) < hit)
    serial = np.append(True, ~survived[:-1]) * gamma
    return right + 1, max(1 + gamma * step, c) + serial


def cut_rounds(
    rng: np.random.Generator,
    alpha: float,
    c: float,
    hit: float,
    lengths: tuple[list[int], list[int]],
    drafted: int,
    branching: float,
) -> Rounds:
    """Chains of lengths drawn from the first after a draft stage, from the second after a hit."""
    drawn = np.stack([rng.choice(choice, ROUNDS) for choice in lengths])
    right = np.minimum(accepted(rng, alpha, int(drawn.max()), ROUNDS), drawn)
    survives = (right == drawn) & (rng.random(ROUNDS) < hit)
    state = np.zeros(ROUNDS, dtype=int)  # 1 after a hit
    for i in range(1, ROUNDS):
        state[i] = survives[state[i - 1], i - 1]
    tokens = right[state, np.arange(ROUNDS)] + 1
    times = max(branching, c) + np.where(state, 0, drafted)
    return tokens, times


@pytest.mark.parametrize("alpha", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("lengths", [([0, 0, 1, 6], [2, 9]), ([4], [0, 0, 3]), ([5], [5])])
def test_chains_that_are_cut_go_on_as_a_markov_chain(
    alpha: float, lengths: tuple[list[int], list[int]]
) -> None:
    rng = np.random.default_rng([int(100 * alpha), *lengths[0]])
    for hit, branching in ((0.0, 3.0), (0.7, 11.0)):
        rounds = cut_rounds(rng, alpha, 8.0, hit, lengths, 7, branching)
        expected = cut_specbranch_speedup(alpha, 8.0, hit, *lengths, 7.0, branching)
        assert_rate(rounds, expected / 8)


@pytest.mark.parametrize(("alpha", "shape"), CASES)
def test_chains_of_one_length_are_the_simple_formula(
    alpha: float, shape: tuple[int, float]
) -> None:
    gamma, c = shape
    simple = specbranch_speedup(alpha, gamma, c, 0.8, 3, 0.1)
    drafting = 1 + gamma * 1.2
    cut = cut_specbranch_speedup(alpha, c, 0.8, [gamma], [gamma], gamma, drafting)
    assert cut == pytest.approx(simple)


def two_windows(rng: np.random.Generator, alpha: float, gamma: int, c: float) -> Rounds:
    """Theorem 1's cycle: two rounds, the second counts where the first was accepted whole."""
    first, second = (accepted(rng, alpha, gamma, ROUNDS) for _ in range(2))
    tokens = first + np.where(first == gamma, second, 0)
    return tokens, np.full(ROUNDS, 2.0 * max(gamma, c))


def assert_rate(rounds: Rounds, expected: float) -> None:
    """Tokens ÷ time over blocks of rounds, within the stated error of what is expected."""
    tokens, times = (part.reshape(100, -1).sum(1) for part in rounds)
    found = tokens.sum() / times.sum()
    error = (tokens - found * times).std(ddof=1) / times.mean() / 10
    assert abs(found - expected) <= ERRORS * error + 1e-12


@pytest.mark.parametrize(("alpha", "shape"), CASES)
def test_speeds_are_those_of_the_rounds(alpha: float, shape: tuple[int, float]) -> None:
    gamma, c = shape
    rng = np.random.default_rng([int(100 * alpha), gamma])
    assert_rate(sps_rounds(rng, alpha, gamma, c), sps_speedup(alpha, gamma, c) / c)
    pearl = pearl_rounds(rng, alpha, gamma, c)
    assert_rate(pearl, pearl_speedup(alpha, gamma, c) / c)
    assert_rate(pearl, 1 / pearl_latency(alpha, gamma, c))
    for hit, branches, cost in ((alpha, 1, 0.0), (0.8, 4, 0.1), (1.0, 12, 0.5)):
        step = 1 + cost * (branches - 1)
        ours = specbranch_rounds(rng, alpha, gamma, c, hit, step)
        assert_rate(ours, specbranch_speedup(alpha, gamma, c, hit, branches, cost) / c)


@pytest.mark.parametrize(("alpha", "gamma"), list(itertools.product(ALPHAS, [1, 4, 11])))
def test_accepted_tokens_follow_the_truncated_geometric_law(alpha: float, gamma: int) -> None:
    found = accepted(np.random.default_rng([7, gamma]), alpha, gamma, ROUNDS)
    law = [accepted_probability(alpha, gamma, k) for k in range(gamma + 1)]
    for k, probability in enumerate(law):
        error = (probability * (1 - probability) / ROUNDS) ** 0.5
        assert abs((found == k).mean() - probability) <= ERRORS * error + 1e-12
    assert sum(law) == pytest.approx(1)
    mean = expected_accepted(alpha, gamma)
    assert mean == pytest.approx(sum(k * p for k, p in enumerate(law)))
    if alpha < 1:
        assert mean == pytest.approx(alpha * (1 - alpha**gamma) / (1 - alpha))
    assert accepted_probability(alpha, gamma, gamma + 1) == 0
    assert accepted_probability(alpha, gamma, -1) == 0


@pytest.mark.parametrize(("alpha", "shape"), CASES)
def test_theorem_1_is_that_of_two_windows_and_not_of_the_rounds(
    alpha: float, shape: tuple[int, float]
) -> None:
    gamma, c = shape
    rng = np.random.default_rng([int(100 * alpha), gamma, 1])
    printed = paper_rollback_latency(alpha, gamma, c)
    assert_rate(two_windows(rng, alpha, gamma, c), 1 / printed)
    if 0 < alpha < 1:
        whole = alpha**gamma
        as_printed = (1 + whole) * alpha * (1 - whole) / (1 - alpha)
        assert printed == pytest.approx(2 * max(gamma, c) / as_printed)
        with pytest.raises(AssertionError):
            assert_rate(pearl_rounds(rng, alpha, gamma, c), 1 / printed)


def test_theorem_1_without_rollback_is_the_ideal() -> None:
    for latency in (paper_rollback_latency, pearl_latency):
        assert latency(1, 5, 9, 0.1) == pytest.approx(paper_ideal_latency(5, 9, 0.1))
    assert paper_ideal_latency(20, 10, 0.5) == 0.5


def test_the_figures_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 0.")]
    assert len(rows) >= 4
    for alpha, *shown in ([float(cell) for cell in row] for row in rows):
        plain, printed = 8.0, paper_rollback_latency(alpha, 8, 8)
        pearl, one = pearl_speedup(alpha, 8, 8), specbranch_speedup(alpha, 8, 8, alpha)
        found = [plain / printed, pearl, one, specbranch_speedup(alpha, 8, 8, 1.0)]
        found += [sps_speedup(alpha, 8, 8), speedup_limit(alpha, 8)]
        assert shown == pytest.approx(found, abs=0.0051)
    for alpha in (0.5, 0.8, 0.95):
        ratio = paper_rollback_latency(alpha, 8, 8) / pearl_latency(alpha, 8, 8)
        assert f"{ratio:.2f} times" in text
    assert paper_rollback_latency(0.666, 8, 8) > 8 > paper_rollback_latency(0.668, 8, 8)
    for c in (4, 10):
        assert f"{pearl_speedup(1, c, c) / sps_speedup(1, c, c):.2f} at c = {c}" in text


@pytest.mark.parametrize("alpha", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("c", [3, 10, 25])
def test_best_gamma(alpha: float, c: int) -> None:
    # Overlapped rounds are free up to γ = c, and lose beyond; the printed formula agrees.
    assert best_gamma(lambda gamma: pearl_speedup(alpha, gamma, c)) == c
    # From there on a longer chain adds less than rounding tells.
    printed = best_gamma(lambda gamma: 1 / paper_rollback_latency(alpha, gamma, c), most=10)
    assert printed == min(c, 10)
    # In turn, a longer chain pays as long as its last token gains more than the mean does.
    gamma = best_gamma(lambda gamma: sps_speedup(alpha, gamma, c))
    assert gamma <= best_gamma(lambda gamma: sps_speedup(alpha, gamma, 2.5 * c))
    best = sps_speedup(alpha, gamma, c)
    assert best > alpha ** (gamma + 1) * c
    assert alpha**gamma * c >= best or gamma == 1


def test_best_gamma_is_the_shortest_of_equals() -> None:
    assert best_gamma(lambda gamma: min(gamma, 4), most=9) == 4


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("c", [0.5, 1.0, 4.0, 30.0])
def test_nothing_exceeds_the_limit(alpha: float, c: float) -> None:
    limit = speedup_limit(alpha, c)
    for gamma in range(1, 100):
        for hit in (alpha, 1.0):
            assert specbranch_speedup(alpha, gamma, c, hit) <= limit * (1 + 1e-9)
        assert pearl_speedup(alpha, gamma, c) <= limit * (1 + 1e-9)
        assert sps_speedup(alpha, gamma, c) <= limit * (1 + 1e-9)
    if c >= 1:  # and where nothing is ever rejected, it is reached
        assert pearl_speedup(1, 60, c) == pytest.approx(speedup_limit(1, c))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: sps_speedup(1.2, 4, 8), "alpha must be between 0 and 1, not 1.2"),
        (lambda: sps_speedup(float("nan"), 4, 8), "alpha must be between 0 and 1"),
        (lambda: pearl_speedup(0.5, 0, 8), "gamma must be 1 or more, and whole, not 0"),
        (
            lambda: expected_accepted(0.5, 2.5),  # type: ignore[arg-type]
            "gamma must be 1 or more, and whole, not 2.5",
        ),
        (lambda: pearl_latency(0.5, 2, 8, t=0), "t must be above 0 and finite, not 0"),
        (lambda: paper_ideal_latency(2, float("inf")), "c must be above 0 and finite"),
        (lambda: specbranch_speedup(0.5, 2, 8, -1), "hit must be between 0 and 1, not -1"),
        (lambda: specbranch_speedup(0.5, 2, 8, 1, 0), "branches must be 1 or more"),
        (lambda: specbranch_speedup(0.5, 2, 8, 1, 2, -1.0), "branch_cost must be 0 or more"),
        (lambda: best_gamma(float, most=0), "most must be 1 or more"),
        (lambda: cut_specbranch_speedup(0.5, 8, 1, [], [1], 2, 3), "there must be some"),
        (lambda: cut_specbranch_speedup(0.5, 8, 1, [-1], [1], 2, 3), "lengths of chains must be 0"),
        (lambda: cut_specbranch_speedup(0.5, 8, 1, [1], [1], -2, 3), "drafted must be 0 or more"),
    ],
)
def test_bad_values(call: Callable[[], float], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        call()


VOCABULARY = 64


def pair_of(alpha: float, hit: float, seed: int) -> tuple[Table, Table]:
    """Tables that agree at each place with probability α, whatever was written before it.

    The draft spreads itself over a third of the vocabulary. First is the target's token with
    probability α, and second with probability h − α.
    """
    rng = np.random.default_rng(seed)
    length = 4000
    right = rng.integers(VOCABULARY, size=length)
    chance = rng.random(length)

    def target(context: tuple[int, ...]) -> torch.Tensor:
        row = torch.zeros(VOCABULARY)
        row[right[len(context)]] = 20.0
        return row

    def draft(context: tuple[int, ...]) -> torch.Tensor:
        place = len(context)
        order = (right[place] + 1 + torch.arange(20)) % VOCABULARY  # all wrong
        if chance[place] < alpha:
            order[0] = right[place]
        elif chance[place] < hit:
            order[1] = right[place]
        row = torch.full((VOCABULARY,), -20.0)
        row[order] = torch.linspace(1, 0, 20)
        return row

    return target, draft


def decoded(
    method: str, alpha: float, hit: float, options: SpeculativeConfig, c: float, cost: float
) -> Rounds:
    """Rounds of a decoder over such a pair on the virtual clock, times in draft steps."""
    target, draft = pair_of(alpha, hit, seed=5)
    profile, clock = Profile.of_ratio(c, cost, step=1.0), VirtualClock()
    verifier, drafter = (TableRunner(table, VOCABULARY) for table in (target, draft))
    executors = ExecutorPair(
        VirtualExecutor(lambda: Verifier(verifier), "target", profile.target, clock),
        VirtualExecutor(lambda: Drafter(drafter), "draft", profile.draft, clock),
    )
    assert executors.drafter is not None
    length = 3000
    params = SamplingParams(max_tokens=length)
    sequence = TokenSequence(1, [0], length)
    opening = OpenRequest([OpenText(1, [0], params, length + 1, VOCABULARY)])
    executors.verifier.submit(opening).result()
    executors.drafter.submit(opening).result()
    ends = [clock.now]
    rounds = []
    made = METHODS[method].make(MethodContext(sequence, options, Tuning(options)))
    for done in Driver(executors).rounds(made):
        rounds.append(len(done.tokens))
        ends.append(clock.now)
    count = len(rounds) // 100 * 100 - 100  # the last ones have the text's end in them
    return np.array(rounds[:count]), np.diff(ends)[:count]


@pytest.mark.parametrize(
    ("alpha", "hit", "gamma", "c", "cost"),
    [(0.6, 0.8, 4, 6.0, 0.0), (0.9, 0.95, 6, 12.0, 0.0), (0.9, 0.9, 6, 4.0, 0.2)],
)
def test_the_decoders_are_as_fast_as_the_theory_says(
    alpha: float, hit: float, gamma: int, c: float, cost: float
) -> None:
    def rates(method: str, k_max: int = 1) -> Rounds:
        options = SpeculativeConfig(gamma, 0.0, k_max, "point", speculate="always")
        return decoded(method, alpha, hit, options, c, cost)

    assert_rate(rates("speculative"), sps_speedup(alpha, gamma, c) / c)
    assert_rate(rates("pearl"), pearl_speedup(alpha, gamma, c) / c)
    alone = specbranch_speedup(alpha, gamma, c, alpha)
    assert_rate(rates("specbranch"), alone / c)
    # The draft's confidence is below a tenth at every place: floor(3 · 0.9) = 2 branches.
    two = specbranch_speedup(alpha, gamma, c, hit, 2, cost)
    assert_rate(rates("specbranch", k_max=3), two / c)
