"""Drafting that tunes itself: how long, how wide, and whether at all, by what pays here and now.

The estimates are of one pair on its lanes, and go on from one request to the next.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from statistics import median

from specbranch.branching import KeepRule
from specbranch.calibration import Calibration
from specbranch.costmodel import OUTLIER, Cost, RunningCost
from specbranch.hrad.signal import Signal
from specbranch.lanes.base import Span
from specbranch.metrics import Round
from specbranch.options import MOST_GAMMA, DecodingOptions
from specbranch.retrieval import Lookup

logger = logging.getLogger("specbranch")

MEMORY = 0.99  # of the rate: what a round counts after each further one
ENOUGH = 0.98  # of plain decoding's rate; below, drafting is paused
LEEWAY = 0.1  # of the rate, beyond which luck explains nothing
FIRST_PAUSE = 128  # tokens decoded plainly before drafting is tried again; doubled each time
TRIALS = 0.01  # of the time, at most, for trials that fail
LONGEST_PAUSE = 4096
LEAST_ROUNDS = 3  # to know what a round takes
LEAST_JUDGED = 4  # to say anything about drafting: one round in three commits a single token
PLAIN_ROUNDS = 3  # to know what plain decoding takes
FIRST_REFRESH = 8  # rounds with drafting after which that is timed again: a new process is slow
REFRESH = 128  # the same later on; doubled up to there


class Tuning:
    """Estimates and choices for one way to decode.

    Args:
        options: what is not `auto` in them is left as it is.

    Attributes:
        paused: whether drafting is turned off because it did not pay.
        calibration: acceptance of what the text repeats, by `Match.strengths`.
    """

    def __init__(self, options: DecodingOptions) -> None:
        self._options = options
        self._verification = RunningCost()
        self._step = RunningCost()
        self._plain: deque[float] = deque(maxlen=8)
        self._rounds = self._tokens = self._seconds = 0.0
        self._warm = self._plain_warm = False
        self._plain_left = PLAIN_ROUNDS
        self._since_plain, self._refresh = 0, FIRST_REFRESH
        self._lookups = self._looked_up = self._rows = 0.0
        self.calibration = Calibration(least=0.0)
        self.paused = False
        self._pause = FIRST_PAUSE
        self._said = False

    @property
    def speculates(self) -> bool:
        """Whether the next round drafts, as long as nothing is drafted already."""
        return self._options.speculate == "always" or self._plain_left <= 0

    @property
    def gamma(self) -> int:
        """γ: so many draft steps as fit beside a verification."""
        if self._options.gamma != "auto":
            return self._options.gamma
        if not (self._step.known and self._verification.known):
            return MOST_GAMMA
        c = self._verification.cost.seconds(MOST_GAMMA / 2) / self._step.cost.seconds(2)
        return max(1, min(int(c), MOST_GAMMA))

    @property
    def step(self) -> Cost | None:
        """Of a draft step, by branches, where the width of each step is to be chosen by it."""
        if self._options.k_max != "auto":
            return None
        return self._step.cost if self._step.known else Cost(1.0, 0.1)

    def rule(self, signal: Signal | None, serial: bool = False) -> KeepRule:
        """How much of a draft to verify.

        Args:
            serial: while it is drafted, the target waits.
        """
        if self._options.epsilon != "auto":
            return KeepRule(self._options.epsilon, signal=signal)
        if not (self._tokens and self._step.known):
            return KeepRule(reach=0.2 if serial else 0.05, signal=signal)
        seconds = self._verification.cost.each
        if serial:
            seconds += self._step.cost.seconds(1)
        return KeepRule(reach=min(seconds * self._tokens / self._seconds, 0.9), signal=signal)

    def saw_plain(self, verification: Span, tokens: int = 1) -> None:
        """Take in a round without the draft, and how many tokens it committed."""
        # The first one moves to other cores; and what was looked up is no plain decoding.
        if self._plain_warm and sum(verification.forwards) == 1:
            self._plain.append(verification.seconds)
        self._plain_warm = True
        if self._plain:
            self._plain_left -= tokens
        if self._plain_left <= 0 and self.paused:
            self._rounds = self._tokens = self._seconds = 0.0
            self._lookups = self._looked_up = self._rows = 0.0
            self._warm = self.paused = False

    def saw(self, done: Round, seconds: float, lookups: Sequence[Lookup] = ()) -> None:
        """Take in a round with drafting, and how long it took.

        Args:
            lookups: rounds that decoding by lookup alone would have ended meanwhile.
        """
        verification = done.verification
        assert verification is not None
        self._plain_warm = False
        self._since_plain += 1
        if self._since_plain >= self._refresh:
            self._plain_left = PLAIN_ROUNDS
            self._since_plain, self._refresh = 0, min(2 * self._refresh, REFRESH)
        self._verification.observe(sum(verification.forwards), verification.seconds)
        for burst in (done.drafting, done.branching):
            if burst is not None and burst.forwards:
                steps = len(burst.forwards)
                self._step.observe(sum(burst.forwards) / steps, burst.seconds / steps)
        if not self._warm:  # the draft had the text to catch up with
            self._warm = True
            return
        if self._rounds > LEAST_ROUNDS:
            seconds = min(seconds, OUTLIER * self._seconds / self._rounds)
        self._rounds = MEMORY * self._rounds + 1
        self._tokens = MEMORY * self._tokens + len(done.tokens)
        self._seconds = MEMORY * self._seconds + seconds
        self._lookups = MEMORY * self._lookups + len(lookups)
        self._looked_up = MEMORY * self._looked_up + sum(each.committed for each in lookups)
        self._rows = MEMORY * self._rows + sum(1 + each.chain for each in lookups)
        if self._options.speculate == "auto" and self._plain and self._rounds > LEAST_JUDGED:
            self._judge()

    @property
    def _by_lookup(self) -> float:
        """How much faster than plain decoding it is to verify what the text repeats."""
        if not self._lookups:
            return 1.0
        cost = self._verification.cost
        longer = cost.seconds(self._rows / self._lookups) / cost.seconds(1)
        return max(1.0, self._looked_up / self._lookups / longer)

    def _judge(self) -> None:
        """Pause where drafting does not pay: after few rounds if by far, else after more."""
        # Tokens that would have been committed without the draft.
        plain = self._by_lookup * self._seconds / median(self._plain)
        gain = self._tokens / plain
        luck = max(0.0, self._rounds**-0.5 - LEEWAY)
        if gain * (1 + luck) >= ENOUGH:
            if not luck:
                self._pause = FIRST_PAUSE
            return
        self._plain_left = max(self._pause, int((plain - self._tokens) / TRIALS))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.paused = True
        if not self._said:
            logger.warning(
                "the draft is turned off: with it, decoding ran at %.2f of its speed without; it "
                "is tried again now and then",
                gain,
            )
            self._said = True
