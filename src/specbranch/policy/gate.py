"""The speculation gate: whether the next round uses the draft model.

Speculation pauses where decoding without the draft model is faster: plainly, or by verifying what
the text repeats. It is tried again after a pause, with a new text, or when decoding becomes slower
than it was with the draft model.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from statistics import median

from specbranch.policy.latency import LatencyLine
from specbranch.policy.ngram import Lookup
from specbranch.policy.throughput import DECAY, ThroughputEstimate

logger = logging.getLogger("specbranch")

ENOUGH = 0.98  # of the throughput without the draft; below, speculation pauses
RETRY_ON_NEW_TEXT = 0.75  # of that; a draft that reached it is tried again with a new text
LEAST_ROUNDS = 4  # to judge speculation: one round in three commits a single token
TOLERANCE = 0.1  # part of the relative error of a throughput that gives no benefit of the doubt
PLAIN_WINDOW = 8  # latest plain rounds whose median latency counts
PLAIN_ROUNDS = 3  # rounds that measure plain decoding
FIRST_REFRESH = (
    8  # speculative rounds until plain decoding is measured again: a new process is slow
)
MAX_REFRESH = 128  # the same later on; the number doubles up to this one
FIRST_PAUSE = 128  # tokens decoded without the draft before it is tried again; doubled each time
MAX_PAUSE = 4096
TRIAL_SHARE = 0.01  # most of the time that failed trials may take
RECENT = 16  # latest rounds without the draft that show the current throughput


class SpeculationGate:
    """Decides between rounds with and without the draft model, by their throughputs.

    Attributes:
        paused: whether speculation is turned off because it was slower.
        reason: why, in words; None unless it is paused.
    """

    def __init__(self) -> None:
        self.paused = False
        self.reason: str | None = None
        self._plain: deque[float] = deque(maxlen=PLAIN_WINDOW)
        self._plain_warm = False
        self._plain_left = PLAIN_ROUNDS
        self._since_plain, self._refresh = 0, FIRST_REFRESH
        self._pause_tokens = FIRST_PAUSE
        # At the last pause, throughput with the draft: in that without it, and in plain decoding's.
        self._gain = self._gain_over_plain = 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._lookups = self._lookup_committed = self._lookup_rows = 0.0

    @property
    def speculates(self) -> bool:
        """Whether the next round uses the draft model."""
        return self._plain_left <= 0

    def begin(self) -> bool:
        """Note that another text begins, for which the draft may be better than for the last.

        Returns:
            Whether speculation resumes from a pause, with nothing known of its throughput.
        """
        resumes = self.paused and self._gain > RETRY_ON_NEW_TEXT
        if resumes:
            self._resume()
        return resumes

    def observe_plain(self, seconds: float, rows: int = 1, tokens: int = 1) -> bool:
        """Add a round without the draft model.

        Args:
            seconds: of its verification.
            rows: tokens of the verification; 1 is plain decoding, more is lookup.
            tokens: committed by it.

        Returns:
            Whether speculation resumes from a pause, with nothing known of its throughput.
        """
        # The first round is not measured, because the target moves to other cores in it.
        if self._plain_warm and rows == 1:
            self._plain.append(seconds)
        self._plain_warm = True
        if self._plain:
            self._plain_left -= tokens
        if self.paused and self._plain:
            self._recent.append((tokens, seconds))
            if len(self._recent) == RECENT and self._slower_than_with_draft:
                self._plain_left, self._pause_tokens = 0, FIRST_PAUSE
        resumes = self.paused and self._plain_left <= 0
        if resumes:
            self._resume()
        return resumes

    def observe_speculative(self) -> None:
        """Count a round with the draft model; now and then, plain decoding is measured again."""
        self._plain_warm = False
        self._since_plain += 1
        if self._since_plain >= self._refresh:
            self._plain_left = PLAIN_ROUNDS
            self._since_plain, self._refresh = 0, min(2 * self._refresh, MAX_REFRESH)

    def observe_lookups(self, lookups: Sequence[Lookup]) -> None:
        """Add the rounds that decoding by lookup alone would have made in a speculative round."""
        self._lookups = DECAY * self._lookups + len(lookups)
        committed = sum(each.committed for each in lookups)
        self._lookup_committed = DECAY * self._lookup_committed + committed
        rows = sum(1 + each.chain for each in lookups)
        self._lookup_rows = DECAY * self._lookup_rows + rows

    @property
    def plain_known(self) -> bool:
        """Whether plain decoding was measured."""
        return bool(self._plain)

    def pays(self, throughputs: Collection[ThroughputEstimate], alone: LatencyLine) -> bool:
        """Whether speculation is fast enough, as far as its rounds can tell.

        A slow draft fails after few rounds; one that loses little needs more rounds to fail. Plain
        decoding must have been measured.

        Args:
            throughputs: of speculation in every mode, one of them of more than `LEAST_ROUNDS`.
            alone: verification latency while the draft rests.
        """
        best = self._best(throughputs)
        margin = max(0.0, best.rounds**-0.5 - TOLERANCE)
        return best.rate / self._rate_without(alone) * (1 + margin) >= ENOUGH

    def pause(self, throughputs: Collection[ThroughputEstimate], alone: LatencyLine) -> None:
        """Turn speculation off, for so long that its trials take a small share of the time.

        Args:
            throughputs, alone: as for `pays`.
        """
        without = self._rate_without(alone)
        self._gain = self._best(throughputs).rate / without
        self._gain_over_plain = self._gain * self._lookup_gain(alone)
        self._recent.clear()
        # Tokens that the same time would have given without the draft, in all modes.
        lost = sum(each.seconds * without - each.tokens for each in throughputs)
        self._plain_left = max(self._pause_tokens, int(lost / TRIAL_SHARE))
        self._pause_tokens = min(2 * self._pause_tokens, MAX_PAUSE)
        self.paused = True
        self.reason = f"with the draft, decoding ran at {self._gain:.2f} of its speed without it"
        logger.info(
            "speculation is paused for %d tokens at most: %s", self._plain_left, self.reason
        )

    def _resume(self) -> None:
        self._lookups = self._lookup_committed = self._lookup_rows = 0.0
        self._plain_left, self.paused, self.reason = 0, False, None

    @property
    def _slower_than_with_draft(self) -> bool:
        """Whether recent decoding is slower than speculation was when it was turned off."""
        tokens, seconds = map(sum, zip(*self._recent, strict=True))
        return bool(tokens * median(self._plain) < self._gain_over_plain * seconds)

    @staticmethod
    def _best(throughputs: Collection[ThroughputEstimate]) -> ThroughputEstimate:
        known = [each for each in throughputs if each.rounds > LEAST_ROUNDS]
        return max(known, key=lambda each: each.rate)

    def _rate_without(self, alone: LatencyLine) -> float:
        """Tokens per second without the draft model."""
        return self._lookup_gain(alone) / median(self._plain)

    def _lookup_gain(self, alone: LatencyLine) -> float:
        """How many times faster than plain decoding lookup alone is; at least 1."""
        if not self._lookups:
            return 1.0
        slowdown = alone.seconds(self._lookup_rows / self._lookups) / alone.seconds(1)
        return max(1.0, self._lookup_committed / self._lookups / slowdown)
