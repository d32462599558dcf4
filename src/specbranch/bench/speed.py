"""What a benchmark found: the speed of each method, with intervals over the questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from specbranch.bench.contenders import ON_SHARE, PLAIN
from specbranch.bench.run import Heat
from specbranch.bench.suites import Question
from specbranch.engine.timeline import target_idle
from specbranch.metrics import Metrics

ALL = "mean of suites"
RESAMPLES = 4000
LEAST = 3  # questions: fewer say nothing about others


@dataclass(frozen=True)
class Interval:
    """A ratio, and between what it lies with 95 % confidence; None where too few were asked."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Speed:
    """One method on one suite.

    Attributes:
        draft, temperature, suite, method: what was measured; the suite may be the mean of all.
        questions: how many.
        tokens_per_second: mean over the questions, as Spec-Bench has it.
        over_plain: ratio to plain decoding on all cores.
        over_share: ratio to plain decoding on the target's share of the cores: the paper's setting,
            in which only the methods with a draft have the draft's hardware.
        accepted: M.
        rollback: RB.
        rollback_of_all: rolled-back tokens ÷ all drafted tokens, as the paper counts.
        calls: target verifications for each 100 tokens.
        idle: share of the decoding time in which the target verified nothing; None if unknown.
    """

    draft: str
    temperature: float
    suite: str
    method: str
    questions: int
    tokens_per_second: float
    over_plain: Interval
    over_share: Interval
    accepted: float
    rollback: float
    rollback_of_all: float
    calls: float
    idle: float | None


def by_suite(question: Question) -> str:
    """Where a question counts."""
    return question.suite


def speeds(
    heats: Sequence[Heat], names: Iterable[str], part: Callable[[Question], str] = by_suite
) -> list[Speed]:
    """All rows: by draft, temperature, suite (and their mean) and method, in order of appearance.

    Args:
        names: of the methods that are rows.
        part: what the questions are parted by, instead of the suite.
    """
    names = list(names)
    found = []
    for draft, temperature in dict.fromkeys((h.draft, h.temperature) for h in heats):
        ours = [h for h in heats if (h.draft, h.temperature) == (draft, temperature)]
        parts = {
            name: [h for h in ours if part(h.question) == name]
            for name in dict.fromkeys(part(h.question) for h in ours)
        }
        whole = {ALL: list(parts.values())} if len(parts) > 1 else {}
        for suite, strata in ({s: [hs] for s, hs in parts.items()} | whole).items():
            answered = [h.answers for stratum in strata for h in stratum]
            there = [name for name in names if all(name in answers for answers in answered)]
            found += [_speed(draft, temperature, suite, name, strata) for name in there]
    return found


def _speed(
    draft: str, temperature: float, suite: str, name: str, strata: list[list[Heat]]
) -> Speed:
    plain, ours = ([rates(s, which) for s in strata] for which in (PLAIN, name))
    on_share = [rates(s, ON_SHARE if ON_SHARE in s[0].answers else PLAIN) for s in strata]
    turns = [turn for stratum in strata for heat in stratum for turn in heat.answers[name]]
    total: Metrics = reduce(add, (turn.metrics for turn in turns))
    texts = [turn.rounds for turn in turns]
    timed = any(done.verification for rounds in texts for done in rounds)
    return Speed(
        draft,
        temperature,
        suite,
        name,
        sum(map(len, ours)),
        float(np.mean([rate.mean() for rate in ours])),
        ratio(ours, plain) if name != PLAIN else Interval(1.0),
        ratio(ours, on_share),
        total.mean_accepted_length,
        total.rollback_rate,
        total.fates.rolled_back / total.fates.total if total.fates.total else 0.0,
        100 * total.target_calls / total.committed,
        target_idle(texts) if timed else None,
    )


def rates(heats: Iterable[Heat], name: str) -> np.ndarray:
    """Tokens a second of each question, all turns and repeats together: (questions,) float64."""
    sums: dict[tuple[str, object], Metrics] = {}
    for heat in heats:
        key = heat.question.suite, heat.question.id
        for turn in heat.answers[name]:
            sums[key] = sums.get(key, Metrics()) + turn.metrics
    return np.array([metrics.tokens_per_second for metrics in sums.values()])


def ratio(ours: list[np.ndarray], theirs: list[np.ndarray]) -> Interval:
    """Mean speed ÷ mean speed, averaged over the strata.

    The interval is the percentile bootstrap's over the questions, which are drawn in pairs and
    within their strata. It says how much another choice of questions may change, not the clock.

    Args:
        ours, theirs: a stratum each, (questions,), the same questions in the same places.
    """
    value = float(np.mean([a.mean() / b.mean() for a, b in zip(ours, theirs, strict=True)]))
    if sum(map(len, ours)) < LEAST:
        return Interval(value)
    rng = np.random.default_rng(0)
    drawn = np.zeros(RESAMPLES)
    for a, b in zip(ours, theirs, strict=True):
        chosen = rng.integers(len(a), size=(RESAMPLES, len(a)))
        drawn += a[chosen].mean(1) / b[chosen].mean(1) / len(ours)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
