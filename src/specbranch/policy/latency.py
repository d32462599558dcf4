"""The latency model: how long verifying and drafting take.

A latency is a straight line in the number of tokens or branches of a forward. The lines are fitted
to recent measurements. The gate, the mode and the draft length are chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from operator import mul

DECAY = 0.97  # of a sample's weight with each later one: about thirty samples matter
OUTLIER = 2.0  # times the estimate; a longer sample is due to the machine, not to the model
OUTLIER_SAMPLES = 3  # weight of samples that an estimate needs before outliers are capped by it


class Mode(Enum):
    """How the two models share the time.

    `SEQUENTIAL`: the draft works while the target waits, and the target has the cores of both.
    `OVERLAPPED`: the draft works during the verification, each model on its own cores.
    """

    SEQUENTIAL = "sequential"
    OVERLAPPED = "overlapped"

    @property
    def other(self) -> Mode:
        """The other mode."""
        return Mode.SEQUENTIAL if self is Mode.OVERLAPPED else Mode.OVERLAPPED


@dataclass(frozen=True)
class LatencyLine:
    """Latency of a forward of n tokens, or of a draft step of n branches: ``base + each · n``.

    Attributes:
        base: seconds that the call takes whatever its size.
        each: seconds for each token or branch.
    """

    base: float
    each: float = 0.0

    def seconds(self, n: float) -> float:
        """Latency of n tokens or branches, in seconds."""
        return self.base + self.each * n


class LatencyEstimate:
    """A `LatencyLine` fitted by least squares with exponentially decaying weights."""

    def __init__(self) -> None:
        self._weight = self._n = self._t = self._nn = self._nt = 0.0

    def observe(self, n: float, seconds: float) -> None:
        """Add a measurement.

        Args:
            n: tokens or branches of a forward, or the mean of several forwards.
            seconds: latency of the forward, or the mean of the same ones.
        """
        if self._weight > OUTLIER_SAMPLES:
            seconds = min(seconds, OUTLIER * self.line.seconds(n))
        values = (1.0, n, seconds, n * n, n * seconds)
        sums = (self._weight, self._n, self._t, self._nn, self._nt)
        self._weight, self._n, self._t, self._nn, self._nt = (
            DECAY * old + new for old, new in zip(sums, values, strict=True)
        )

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return self._weight > 0

    @property
    def line(self) -> LatencyLine:
        """The fitted line; it is level where n hardly varied. It needs one measurement."""
        n, t = self._n / self._weight, self._t / self._weight
        variance = self._nn / self._weight - n * n
        if variance < 0.1:
            return LatencyLine(t)
        each = max(0.0, (self._nt / self._weight - n * t) / variance)
        each = min(each, t / max(n, 1.0))  # the base is not negative
        return LatencyLine(t - each * n, each)


class LatencyModel:
    """Latencies of one pair of models on its executors.

    Attributes:
        verification: of a verification by its tokens, for each mode, because the target has more
            cores in the sequential one.
        step: of a draft step by its branches.
        draft_stage: of a whole draft stage by its steps; the target waits meanwhile.
    """

    def __init__(self) -> None:
        self.verification = {mode: LatencyEstimate() for mode in Mode}
        self.step = LatencyEstimate()
        self.draft_stage = LatencyEstimate()

    def observe_steps(self, forwards: Sequence[int], seconds: float) -> None:
        """Add the draft steps of one call.

        Args:
            forwards: number of branches of each step; nothing is added where there is none.
            seconds: duration of all steps together.
        """
        if steps := len(forwards):
            self.step.observe(sum(forwards) / steps, seconds / steps)

    def steps_during(self, tokens: float) -> int | None:
        """Draft steps of two branches that fit into one overlapped verification.

        Args:
            tokens: of the verification.

        Returns:
            The number of steps, rounded down; None while a latency is unknown.
        """
        verification = self.verification[Mode.OVERLAPPED]
        if not (self.step.known and verification.known):
            return None
        return int(verification.line.seconds(tokens) / self.step.line.seconds(2))

    def extra_step_seconds(self) -> float:
        """Seconds by which one step more prolongs a draft stage; a step must have been measured.

        What a stage takes however short it is (messages) is not part of it.
        """
        stage = self.draft_stage
        each = stage.line.each if stage.known else 0.0
        return each or self.step.line.seconds(1)

    def verification_alone(self, mode: Mode) -> LatencyLine:
        """Verification latency while the draft rests.

        Args:
            mode: the one whose latency is known, for where the sequential one is not.
        """
        alone = self.verification[Mode.SEQUENTIAL]
        return (alone if alone.known else self.verification[mode]).line


def cumulative_acceptance(acceptance: Sequence[float]) -> list[float]:
    """Probability that each token is accepted together with all those before it.

    Args:
        acceptance: probability of each token, given that those before it are accepted.
    """
    return list(accumulate(acceptance, mul))


def best_width(values: Sequence[float], line: LatencyLine) -> int:
    """How many of the most valuable items to process in one step, for the most value per second.

    Args:
        values: of n ≥ 1 items, in falling order.
        line: latency of a step by the number of items.
    """
    gained = list(accumulate(values))
    return max(range(1, len(values) + 1), key=lambda k: gained[k - 1] / line.seconds(k))
