"""What a benchmark found: the speed of each method, with intervals over the questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from specbranch.bench.contenders import ON_SHARE, PLAIN
from specbranch.bench.placement import Placement, method_name
from specbranch.bench.run import Heat
from specbranch.bench.suites import Question
from specbranch.engine.timeline import target_idle
from specbranch.metrics import Metrics

ALL = "mean of suites"
RESAMPLES = 4000
LEAST = 3  # questions: fewer say nothing about others
DISTURBED = 1.5  # times the median of its repeats


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

    def __truediv__(self, divisor: float) -> Interval:
        low = None if self.low is None else self.low / divisor
        high = None if self.high is None else self.high / divisor
        return Interval(self.value / divisor, low, high)


@dataclass(frozen=True)
class Speed:
    """One method on one suite.

    Attributes:
        draft, temperature, suite, method: what was measured; the suite may be the mean of all.
        placement: who had which hardware.
        devices: how many the method took, where the models have a device each; else 1, all of it.
        questions: how many.
        tokens_per_second: mean over the questions, as Spec-Bench has it; each question's is the
            median over its repeats.
        over_plain: ratio to plain decoding in the same placement.
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
    placement: Placement
    devices: int
    questions: int
    tokens_per_second: float
    over_plain: Interval
    accepted: float
    rollback: float
    rollback_of_all: float
    calls: float
    idle: float | None

    @property
    def per_device(self) -> Interval:
        """Ratio to plain decoding of tokens a second and device."""
        return self.over_plain / self.devices


@dataclass(frozen=True)
class Disturbed:
    """A run that took much longer than the other repeats of the same.

    Attributes:
        heat: which one.
        name: of the contender.
        times: the median of the repeats that it took.
    """

    heat: Heat
    name: str
    times: float


def by_suite(question: Question) -> str:
    """Where a question counts."""
    return question.suite


def speeds(
    heats: Sequence[Heat],
    names: Iterable[str],
    part: Callable[[Question], str] = by_suite,
    devices: Mapping[str, int] | None = None,
) -> list[Speed]:
    """All rows: by draft, temperature, suite (and their mean) and method, in order of appearance.

    Args:
        names: of the contenders that are rows.
        part: what the questions are parted by, instead of the suite.
        devices: that a contender takes; 1 where nothing is said.
    """
    devices = devices or {}
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
            found += [
                _speed(draft, temperature, suite, name, strata, devices.get(name, 1))
                for name in there
            ]
    return found


def _speed(
    draft: str, temperature: float, suite: str, name: str, strata: list[list[Heat]], devices: int
) -> Speed:
    placement = Placement.of(name)
    reference = PLAIN if placement is Placement.EQUAL else ON_SHARE
    plain, ours = ([rates(s, which) for s in strata] for which in (reference, name))
    turns = [turn for stratum in strata for heat in stratum for turn in heat.answers[name]]
    total: Metrics = reduce(add, (turn.metrics for turn in turns))
    texts = [turn.rounds for turn in turns]
    timed = any(done.verification for rounds in texts for done in rounds)
    return Speed(
        draft,
        temperature,
        suite,
        method_name(name),
        placement,
        devices,
        sum(map(len, ours)),
        float(np.mean([rate.mean() for rate in ours])),
        ratio(ours, plain) if name != reference else Interval(1.0),
        total.mean_accepted_length,
        total.rollback_rate,
        total.fates.rolled_back / total.fates.total if total.fates.total else 0.0,
        100 * total.target_calls / total.committed,
        target_idle(texts) if timed else None,
    )


def rates(heats: Iterable[Heat], name: str) -> np.ndarray:
    """Tokens a second of each question: (questions,) float64.

    All turns together; the median of the repeats, so that a disturbed one does not count.
    """
    found: dict[tuple[str, object], list[float]] = {}
    for heat in heats:
        key = heat.question.suite, heat.question.id
        found.setdefault(key, []).append(_all_turns(heat, name).tokens_per_second)
    return np.array([np.median(speeds) for speeds in found.values()])


def _all_turns(heat: Heat, name: str) -> Metrics:
    return reduce(add, (turn.metrics for turn in heat.answers[name]))


def disturbed(heats: Sequence[Heat], names: Iterable[str]) -> list[Disturbed]:
    """The runs that took much longer than the median of three repeats or more, the worst first."""
    found = []
    repeats: dict[tuple[object, ...], list[Heat]] = {}
    for heat in heats:
        draft, temperature, _, *question = heat.key
        repeats.setdefault((draft, temperature, *question), []).append(heat)
    for same in repeats.values():
        for name in names:
            several = [heat for heat in same if name in heat.answers]
            seconds = [_all_turns(heat, name).seconds for heat in several]
            if len(seconds) < LEAST:
                continue
            median = float(np.median(seconds))
            found += [
                Disturbed(heat, name, spent / median)
                for heat, spent in zip(several, seconds, strict=True)
                if spent > DISTURBED * median
            ]
    return sorted(found, key=lambda run: -run.times)


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
