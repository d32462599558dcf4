"""How well SpecBranch's executors overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from specbranch.bench.contenders import ALWAYS_ON, BY_ITSELF, SEQUENTIAL
from specbranch.bench.run import Heat
from specbranch.engine.timeline import target_idle
from specbranch.executors.virtual import ModelLatency
from specbranch.metrics import Round


@dataclass(frozen=True)
class Overlap:
    """Figures of the contender `specbranch-always`.

    Attributes:
        round_time: median time of a round's overlapped step ÷ that of its longer executor call.
        idle: share of the decoding time in which the target verified nothing.
        steady_idle: the same in the rounds after a hit.
        gain: decoding time of the same texts by the same decoder run sequentially, each model on
            all cores, ÷ its time; the median over the texts.
        slow_down: verification beside a working draft ÷ one of as many tokens without, on the same
            cores; the median.
        c: median verification ÷ median draft step.
    """

    round_time: float
    idle: float
    steady_idle: float
    gain: float
    slow_down: float
    c: float


def overlap(heats: Sequence[Heat]) -> Overlap | None:
    """Of the heats in which `Pair.for_overlap` took part; None without any."""
    heats = [heat for heat in heats if SEQUENTIAL in heat.answers]
    texts = _texts(heats, ALWAYS_ON)
    both = [r for rounds in texts for r in rounds if r.branching and r.verification]
    if not both:
        return None
    alone = [r for name in BY_ITSELF.values() for rounds in _texts(heats, name) for r in rounds]
    verification = median(r.verification.seconds for r in both if r.verification)
    bursts = [r.branching for r in both if r.branching and r.branching.forwards]
    steps = [burst.seconds / len(burst.forwards) for burst in bursts]
    return Overlap(
        median(map(_overlapped, both)),
        target_idle(texts),
        target_idle(texts, steady=True),
        median(
            sum(r.seconds for r in slow) / sum(r.seconds for r in fast)
            for slow, fast in zip(_texts(heats, SEQUENTIAL), texts, strict=True)
        ),
        _slow_down(both, alone),
        verification / median(steps),
    )


def _texts(heats: Iterable[Heat], name: str) -> list[list[Round]]:
    return [turn.rounds for heat in heats for turn in heat.answers[name]]


def _overlapped(done: Round) -> float:
    assert done.branching is not None and done.verification is not None
    draft_stage = done.drafting.seconds if done.drafting else 0.0
    return (done.seconds - draft_stage) / max(done.branching.seconds, done.verification.seconds)


def _slow_down(beside: Iterable[Round], alone: Iterable[Round]) -> float:
    """The median over forwards, each held against the median of its size."""
    expected = ModelLatency({n: median(seconds) for n, seconds in _by_tokens(alone).items()})
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
