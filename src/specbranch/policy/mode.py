"""The choice between sequential and overlapped drafting.

Two executors on the same cores have fewer of them each while both work. A short draft followed by a
verification on all cores may then be faster than drafting during the verification.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from specbranch.policy.latency import LatencyModel, Mode

WINDOW = 16  # latest rounds of each mode that are compared
LEAST_ROUNDS = 3  # measured, for a mode to be comparable
MIN_STAY = 8  # rounds between changes of the mode
RETRIAL = 32  # rounds after which the other mode is measured anew; doubled each time
MAX_RETRIAL = 512


@dataclass(frozen=True)
class ModeSample:
    """Latencies of one round.

    Attributes:
        tokens: of the verification.
        verification: seconds of the verification.
        overhead: seconds of the round besides verification and draft stage: messages, waiting for
            branches, choosing.
    """

    tokens: int
    verification: float
    overhead: float


class ModeSelector:
    """Selects the mode in which a round of the current chains takes less time.

    Rounds are compared by duration for equal chains. Throughputs would compare different texts.

    Attributes:
        mode: the current mode.
        both: whether the sequential mode is possible, too.
        draft_stage_share: share of the overlapped rounds that began with a draft stage.
    """

    def __init__(self) -> None:
        self.mode = Mode.OVERLAPPED
        self.both = False
        self.draft_stage_share = 0.0
        self._stay = MIN_STAY
        self._since_change, self._retrial = 0, RETRIAL
        self._samples: dict[Mode, deque[ModeSample]]
        self._samples = {mode: deque(maxlen=WINDOW) for mode in Mode}

    def offer_sequential(self) -> None:
        """Make the sequential mode possible. It is then tried first."""
        if not self.both:
            self.both, self.mode = True, Mode.SEQUENTIAL

    def observe(self, sample: ModeSample) -> None:
        """Add a round in the current mode."""
        self._samples[self.mode].append(sample)

    @property
    def other_untried(self) -> bool:
        """Whether the other mode is possible and too little measured to be compared."""
        return self.both and not self._comparable(self.mode.other)

    def change(self) -> None:
        """Change to the other mode, for some rounds at least."""
        self.mode, self._stay, self._since_change = self.mode.other, MIN_STAY, 0

    def choose(self, chain: float, retrieved_share: float, latency: LatencyModel) -> bool:
        """Count a round, and change the mode if the other one is faster or due to be measured.

        Args:
            chain: mean length of the current chains.
            retrieved_share: share of them that need no draft stage because they are retrieved.

        Returns:
            Whether the mode changed.
        """
        self._stay -= 1
        self._since_change += 1
        if self._stay > 0 or not self.both:
            return False
        other = self.mode.other
        if self._comparable(other) and self._since_change >= self._retrial:
            # Machines change: a mode that was slow once need not stay slow.
            self._samples[other].clear()
            self._retrial = min(2 * self._retrial, MAX_RETRIAL)
        if self._comparable(other):
            ours, theirs = (
                self._round_seconds(mode, chain, retrieved_share, latency)
                for mode in (self.mode, other)
            )
            if theirs >= ours:
                return False
        self.change()
        return True

    def _comparable(self, mode: Mode) -> bool:
        return len(self._samples[mode]) >= LEAST_ROUNDS

    def _round_seconds(
        self, mode: Mode, chain: float, retrieved_share: float, latency: LatencyModel
    ) -> float:
        """Expected duration of a round with the current chains in a mode, in seconds."""
        # A few rounds with chains of other lengths do not determine a line, but they scale one.
        line, samples = latency.verification[self.mode].line, self._samples[mode]
        slowdown = median(s.verification / line.seconds(s.tokens) for s in samples)
        seconds = line.seconds(1 + chain) * slowdown + median(s.overhead for s in samples)
        if latency.draft_stage.known:
            # An overlapped round has a draft stage only where no branch survived.
            overlapped = mode is Mode.OVERLAPPED
            share = self.draft_stage_share if overlapped else 1 - retrieved_share
            seconds += share * latency.draft_stage.line.seconds(chain)
        return seconds
