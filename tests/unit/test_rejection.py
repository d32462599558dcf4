"""Rejection sampling gives exactly the target's distribution: by enumeration, and by chi-square."""

import itertools
import math
from collections import Counter, defaultdict

import pytest

from specbranch.config import SpeculativeConfig
from specbranch.methods.registry import METHODS
from specbranch.sampling_params import SamplingParams
from specbranch.workers import drafter as draft_worker
from specbranch.workers import verifier as target_worker
from tests.tables import decode, imitation, random_table

pytestmark = pytest.mark.slow


class Enumerator:
    """A source of randomness that walks through every way the draws can fall.

    Each run follows the choices recorded in `path` and takes the first option after them;
    `next_run` moves to the next combination, as an odometer does.
    """

    def __init__(self):
        self.path: list[list] = []  # [option, probabilities]
        self.at = 0
        self.weight = 1.0

    def _draw(self, probabilities):
        if self.at == len(self.path):
            self.path.append([0, [(o, p) for o, p in enumerate(probabilities) if p > 0]])
        index, options = self.path[self.at]
        self.at += 1
        option, probability = options[index]
        self.weight *= probability
        return option

    def next_run(self) -> bool:
        while self.path and self.path[-1][0] == len(self.path[-1][1]) - 1:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        self.at, self.weight = 0, 1.0
        return bool(self.path)

    def scores(self, log_probs, positions, stream):
        return log_probs

    def tokens(self, log_probs, positions, stream):
        return [self._draw(row.double().exp().tolist()) for row in log_probs]

    def accepts(self, probability, position):
        return self._draw([1 - probability, probability]) == 1


def exact_distribution(target, vocabulary, length, temperature, prompt=(0,)):
    """Probability of every continuation of `length` tokens under plain decoding."""
    result = {}
    for text in itertools.product(range(vocabulary), repeat=length):
        log_p = 0.0
        for i, token in enumerate(text):
            row = (target((*prompt, *text[:i])) / temperature).double().log_softmax(-1)
            log_p += row[token].item()
        result[text] = math.exp(log_p)
    return result


@pytest.mark.parametrize(
    ("method", "gamma", "k_max", "epsilon", "length", "vocabulary", "branching"),
    [
        ("lookup", 1, 1, 0.0, 4, 3, "point"),
        ("lookup", 3, 1, 0.0, 5, 2, "point"),
        ("lookahead", 3, 1, 0.0, 6, 2, "point"),
        ("speculative", 1, 1, 0.0, 3, 3, "point"),
        ("speculative", 2, 1, 0.0, 3, 3, "point"),
        ("speculative", 3, 1, 0.0, 4, 2, "point"),
        ("adaedl", 3, 1, 0.0, 4, 2, "point"),
        ("adaedl", 2, 1, 0.0, 3, 3, "point"),
        ("pearl", 1, 1, 0.0, 3, 3, "point"),
        ("pearl", 2, 1, 0.0, 4, 2, "point"),
        ("pearl", 3, 1, 0.0, 4, 2, "point"),
        ("specbranch", 1, 1, 0.0, 3, 3, "point"),
        ("specbranch", 2, 2, 0.0, 3, 3, "point"),
        ("specbranch", 2, 3, 0.5, 3, 3, "point"),
        ("specbranch", 1, 2, 0.0, 4, 2, "point"),
        ("specbranch", 2, 2, 0.6, 4, 2, "point"),
        ("specbranch", 1, 2, 0.0, 3, 3, "outcomes"),
        ("specbranch", 2, 3, 0.0, 3, 3, "outcomes"),
        ("specbranch", 2, 2, 0.4, 4, 2, "outcomes"),
    ],
)
def test_enumeration_of_all_draws_gives_the_targets_distribution(
    monkeypatch, method, gamma, k_max, epsilon, length, vocabulary, branching
):
    enumerator = Enumerator()
    for module in (draft_worker, target_worker):
        monkeypatch.setattr(module, "make_sampler", lambda params: enumerator)
    target = random_table(7, vocabulary, scale=1.0)
    draft = imitation(target, 8, vocabulary, noise=1.0)
    params = SamplingParams(temperature=0.9, seed=0, max_tokens=length, acceptance="rejection")
    options = SpeculativeConfig(gamma, epsilon, k_max, branching)
    found = defaultdict(float)
    runs, going = 0, True
    while going:
        text = decode(method, target, draft, vocabulary, params, options).text
        found[tuple(text.tokens)] += enumerator.weight
        runs += 1
        going = enumerator.next_run()
    assert runs >= vocabulary**length
    expected = exact_distribution(target, vocabulary, length, 0.9)
    assert sum(found.values()) == pytest.approx(1, abs=1e-6)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("branching", ["point", "outcomes"])
def test_enumeration_of_all_draws_with_retrieved_chains(monkeypatch, branching):
    """A prompt that repeats itself, so that chains and branches come from it."""
    enumerator = Enumerator()
    for module in (draft_worker, target_worker):
        monkeypatch.setattr(module, "make_sampler", lambda params: enumerator)
    vocabulary, length, prompt = 2, 5, (0, 1) * 6
    target = random_table(7, vocabulary, scale=1.0)
    draft = imitation(target, 8, vocabulary, noise=1.0)
    params = SamplingParams(temperature=0.9, seed=0, max_tokens=length, acceptance="rejection")
    options = SpeculativeConfig(1, 0.0, 8, branching)
    found = defaultdict(float)
    stages = survivors = 0
    going = True
    while going:
        done = decode("specbranch", target, draft, vocabulary, params, options, prompt)
        found[tuple(done.text.tokens)] += enumerator.weight
        stages += sum(r.retrieved and r.draft_stage for r in done.rounds)
        survivors += sum(r.retrieved and not r.draft_stage for r in done.rounds)
        going = enumerator.next_run()
    assert min(stages, survivors) > 10
    expected = exact_distribution(target, vocabulary, length, 0.9, prompt)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "length", "vocabulary"),
    [("lookup", 5, 2), ("speculative", 3, 3), ("pearl", 3, 3), ("specbranch", 3, 3)],
)
def test_enumeration_of_all_draws_with_logits_processors(monkeypatch, method, length, vocabulary):
    enumerator = Enumerator()
    for module in (draft_worker, target_worker):
        monkeypatch.setattr(module, "make_sampler", lambda params: enumerator)
    target = random_table(7, vocabulary, scale=1.0)
    draft = imitation(target, 8, vocabulary, noise=1.0)
    params = SamplingParams(
        temperature=0.9,
        seed=0,
        max_tokens=length,
        acceptance="rejection",
        frequency_penalty=0.8,
        logit_bias={0: 0.5},
    )
    found = defaultdict(float)
    going = True
    while going:
        text = decode(method, target, draft, vocabulary, params, SpeculativeConfig(2, 0.0, 2)).text
        found[tuple(text.tokens)] += enumerator.weight
        going = enumerator.next_run()

    def processed(context):
        row = target(context).clone()
        row[0] += 0.5
        for token in context[1:]:  # the prompt, one token, does not count
            row[token] -= 0.8
        return row

    expected = exact_distribution(processed, vocabulary, length, 0.9)
    assert found == pytest.approx(expected, abs=1e-6)


def chi_square_99_9(degrees: int) -> float:
    """The 99.9th percentile of chi-square, by the Wilson-Hilferty approximation."""
    return degrees * (1 - 2 / (9 * degrees) + 3.0902 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"autoregressive"}))
@pytest.mark.parametrize("acceptance", ["rejection", "coupled"])
def test_seeded_sampling_has_the_targets_distribution(method, acceptance):
    """Error rate: a correct sampler fails one set of seeds in a thousand; these seeds are fixed."""
    vocabulary, length, runs = 3, 3, 4000
    target = random_table(11, vocabulary, scale=1.0)
    draft = imitation(target, 12, vocabulary, noise=1.5)
    options = SpeculativeConfig(gamma=2, epsilon=0.4, k_max=2)
    counts = Counter()
    for seed in range(runs):
        params = SamplingParams(
            temperature=1.0, seed=seed, max_tokens=length, acceptance=acceptance
        )
        text = decode(method, target, draft, vocabulary, params, options).text
        counts[tuple(text.tokens)] += 1
    expected = exact_distribution(target, vocabulary, length, 1.0)
    statistic = sum((counts[t] - runs * p) ** 2 / (runs * p) for t, p in expected.items())
    assert statistic < chi_square_99_9(len(expected) - 1)
    # The same statistic finds the draft's distribution out, so it can fail.
    wrong = exact_distribution(draft, vocabulary, length, 1.0)
    assert sum(
        (counts[t] - runs * p) ** 2 / (runs * p) for t, p in wrong.items()
    ) > 10 * chi_square_99_9(len(expected) - 1)


def test_rejection_accepts_more_often_than_coupling():
    vocabulary = 8
    target = random_table(21, vocabulary, scale=1.0)
    draft = imitation(target, 22, vocabulary, noise=0.7)
    accepted = {}
    for rule in ("rejection", "coupled"):
        accepted[rule] = sum(
            decode(
                "speculative",
                target,
                draft,
                vocabulary,
                SamplingParams(temperature=1.0, seed=s, max_tokens=100, acceptance=rule),
                SpeculativeConfig(gamma=4),
            ).metrics.fates.accepted
            for s in range(20)
        )
    assert accepted["rejection"] > accepted["coupled"]
