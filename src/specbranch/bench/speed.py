"""What a benchmark found: speed of each method, and how well the lanes overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from statistics import median

from specbranch.bench.contenders import (
    BY_ITSELF,
    IN_TURN,
    ON_SHARE,
    PLAIN,
    SPECBRANCH,
    Contender,
)
from specbranch.bench.interleave import Results
from specbranch.lanes.virtual import Costs
from specbranch.metrics import Metrics, Round
from specbranch.timeline import target_idle


@dataclass(frozen=True)
class Spread:
    """Median, least and most of several repeats."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Speed:
    """One row of the table.

    Attributes:
        tokens_per_second: of the repeats.
        over_plain: ratio to plain decoding on all cores, repeat by repeat.
        over_share: ratio to plain decoding on the target's share of the cores: the paper's setting,
            in which only the method has the draft's hardware.
        accepted: M.
        rollback: RB.
        idle: share of the decoding time in which the target verified nothing.
    """

    label: str
    tokens_per_second: Spread
    over_plain: Spread
    over_share: Spread
    accepted: float
    rollback: float
    idle: float


def speeds(contenders: Sequence[Contender], results: Results) -> list[Speed]:
    """The table, one row a contender that competes."""
    rows = []
    for contender in contenders:
        if not contender.competes:
            continue
        ours = results.metrics[contender.label]
        total: Metrics = reduce(add, ours)
        rows.append(
            Speed(
                contender.label,
                Spread.of(m.tokens_per_second for m in ours),
                _ratio(ours, results.metrics[PLAIN]),
                _ratio(ours, results.metrics.get(ON_SHARE, results.metrics[PLAIN])),
                total.mean_accepted_length,
                total.rollback_rate,
                target_idle(results.rounds[contender.label]),
            )
        )
    return rows


@dataclass(frozen=True)
class Overlap:
    """How well SpecBranch's lanes overlap.

    Attributes:
        round_time: median time of a round's overlapped step ÷ that of its longer lane call.
        idle: share of the decoding time in which the target verified nothing.
        steady_idle: the same in the rounds after a hit.
        gain: decoding time of the same texts by the same decoder with the models in turn, each on
            all cores, ÷ its time; text by text.
        gain_with_prompt: the same with the reading of the prompt, where nothing can overlap;
            repeat by repeat.
        slow_down: verification beside a working draft ÷ one of as many tokens without, on the same
            cores; the median.
        c: median verification ÷ median draft step.
    """

    round_time: float
    idle: float
    steady_idle: float
    gain: Spread
    gain_with_prompt: Spread
    slow_down: float
    c: float


def overlap(results: Results) -> Overlap | None:
    """Figures of the contender `SpecBranch`; None where its lanes never overlap."""
    if IN_TURN not in results.metrics:
        return None
    texts = results.rounds[SPECBRANCH]
    both = [r for rounds in texts for r in rounds if r.branching and r.verification]
    alone = [r for label in BY_ITSELF.values() for rounds in results.rounds[label] for r in rounds]
    if not both:
        return None
    verification = median(r.verification.seconds for r in both if r.verification)
    bursts = [r.branching for r in both if r.branching and r.branching.forwards]
    steps = [burst.seconds / len(burst.forwards) for burst in bursts]
    return Overlap(
        median(map(_overlapped, both)),
        target_idle(texts),
        target_idle(texts, steady=True),
        Spread.of(
            sum(r.seconds for r in slow) / sum(r.seconds for r in fast)
            for slow, fast in zip(results.rounds[IN_TURN], texts, strict=False)
        ),
        _ratio(results.metrics[SPECBRANCH], results.metrics[IN_TURN]),
        _slow_down(both, alone),
        verification / median(steps),
    )


def _overlapped(done: Round) -> float:
    assert done.branching is not None and done.verification is not None
    draft_stage = done.drafting.seconds if done.drafting else 0.0
    return (done.seconds - draft_stage) / max(done.branching.seconds, done.verification.seconds)


def _slow_down(beside: Iterable[Round], alone: Iterable[Round]) -> float:
    """The median over forwards, each held against the median of its size."""
    expected = Costs({n: median(seconds) for n, seconds in _by_tokens(alone).items()})
    ratios = [
        seconds / expected.seconds(n)
        for n, taken in _by_tokens(beside).items()
        for seconds in taken
    ]
    return median(ratios)


def _by_tokens(rounds: Iterable[Round]) -> dict[int, list[float]]:
    """Seconds of verifications by the number of tokens."""
    found: dict[int, list[float]] = defaultdict(list)
    for verification in (r.verification for r in rounds if r.verification):
        found[sum(verification.forwards)].append(verification.seconds)
    return found


def _ratio(ours: Sequence[Metrics], theirs: Sequence[Metrics]) -> Spread:
    pairs = zip(ours, theirs, strict=True)
    return Spread.of(a.tokens_per_second / b.tokens_per_second for a, b in pairs)
