"""Drafting that tunes itself: how long, how wide, beside the target or in turn, or not at all.

The estimates are of one pair on its executors, and go on from one request to the next.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from statistics import median

from specbranch.config import MOST_GAMMA, SpeculativeConfig
from specbranch.executors.base import Span
from specbranch.metrics import Round
from specbranch.policy.acceptance import Calibration
from specbranch.policy.branching import DraftLengthPolicy
from specbranch.policy.latency import OUTLIER, LatencyEstimate, LatencyLine
from specbranch.policy.ngram import Lookup
from specbranch.policy.signal import Signal

logger = logging.getLogger("specbranch")

MEMORY = 0.99  # of the rate: what a round counts after each further one
SHORT_MEMORY = 0.95  # the same, of the rate that a token more has to be worth its time at
WORTH_A_TRIAL = 0.75  # the same; with another text, a draft that was no worse is tried again
ENOUGH = 0.98  # of plain decoding's rate; below, drafting is paused
LEEWAY = 0.1  # of the rate, beyond which luck explains nothing
FIRST_PAUSE = 128  # tokens decoded plainly before drafting is tried again; doubled each time
TRIALS = 0.01  # of the time, at most, for trials that fail
LONGEST_PAUSE = 4096
LATELY = 16  # rounds without the draft that show how fast this is on the text of now
LEAST_ROUNDS = 3  # to know what a round takes
LEAST_JUDGED = 4  # to say anything about drafting: one round in three commits a single token
PLAIN_ROUNDS = 3  # to know what plain decoding takes
FIRST_REFRESH = 8  # rounds with drafting after which that is timed again: a new process is slow
REFRESH = 128  # the same later on; doubled up to there
STAY = 8  # rounds, at least, between changes of the way to draft
RETRIAL = 32  # rounds after which the other way is tried anew: machines change; doubled each time
LONGEST_RETRIAL = 512


class ThroughputEstimate:
    """How fast rounds of one kind commit, those of late more than those of long ago.

    Attributes:
        rounds, tokens, seconds: sums, discounted.
        chains, looked_up, serial: likewise: of the chains' tokens, of rounds whose chain the text
            repeats, and of those in which the target waited for the draft.
        lately: tokens a second, by fewer rounds: on the text of now.
        warm: whether more than the first round was seen, in which the draft had to catch up.
    """

    def __init__(self) -> None:
        self.rounds = self.tokens = self.seconds = 0.0
        self.chains = self.looked_up = self.serial = 0.0
        self._tokens = self._seconds = 0.0
        self.warm = False

    def observe(self, done: Round, seconds: float) -> None:
        """Take in a round, and how long it took."""
        tokens = len(done.tokens)
        if self.rounds > LEAST_ROUNDS:
            seconds = min(seconds, OUTLIER * self.seconds / self.rounds)
        self.rounds = MEMORY * self.rounds + 1
        self.tokens = MEMORY * self.tokens + tokens
        self.seconds = MEMORY * self.seconds + seconds
        self.chains = MEMORY * self.chains + done.chain
        self.looked_up = MEMORY * self.looked_up + done.retrieved
        self.serial = MEMORY * self.serial + (done.drafting is not None and not done.retrieved)
        self._tokens = SHORT_MEMORY * self._tokens + tokens
        self._seconds = SHORT_MEMORY * self._seconds + seconds

    @property
    def lately(self) -> float:
        return self._tokens / self._seconds

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Tuning:
    """Estimates and choices for one way to decode.

    Args:
        options: what is not `auto` in them is left as it is.

    Attributes:
        paused: whether drafting is turned off because it did not pay.
        calibration: acceptance of what the text repeats, by `Match.strengths`.
    """

    def __init__(self, options: SpeculativeConfig) -> None:
        self._options = options
        self._verifications = {True: LatencyEstimate(), False: LatencyEstimate()}
        self._paces = {True: ThroughputEstimate(), False: ThroughputEstimate()}
        self._overlaps, self._stays = True, STAY
        self._since_change, self._retrial = 0, RETRIAL
        # Of the last rounds: tokens and seconds of the verification, and what it took besides:
        # messages, waiting for branches, choosing.
        self._tried: dict[bool, deque[tuple[int, float, float]]]
        self._tried = {way: deque(maxlen=LATELY) for way in (True, False)}
        self._serial = 0.0  # share of rounds beside the target that began with a draft stage
        self._step, self._drafting = LatencyEstimate(), LatencyEstimate()
        self._plain: deque[float] = deque(maxlen=8)
        self._plain_warm = False
        # The draft's rate when it was turned off: in that without it, and in plain decoding's.
        self._gain = self._with_draft = 0.0
        self._lately: deque[tuple[int, float]] = deque(maxlen=LATELY)
        self._plain_left = PLAIN_ROUNDS
        self._since_plain, self._refresh = 0, FIRST_REFRESH
        self._lookups = self._looked_up = self._rows = 0.0
        self.calibration = Calibration(least=0.0)
        self.paused = self._has_ways = False
        self._pause = FIRST_PAUSE
        self._said = False

    def begin(self, competing: bool) -> None:
        """Take in that another text begins, for which the draft may be better than for the last.

        Args:
            competing: whether the target is faster while the draft waits, so that drafting in turn
                is a way as well: the first to be tried.
        """
        if competing and not self._has_ways and self._options.speculate == "auto":
            self._has_ways, self._overlaps = True, False
        if self.paused and self._gain > WORTH_A_TRIAL:
            self._resume()

    def _resume(self) -> None:
        """Have the next round draft again, with nothing known of its pace."""
        self._paces = {True: ThroughputEstimate(), False: ThroughputEstimate()}
        self._lookups = self._looked_up = self._rows = 0.0
        self._plain_left, self.paused = 0, False

    @property
    def speculates(self) -> bool:
        """Whether the next round drafts, as long as nothing is drafted already."""
        return self._options.speculate == "always" or self._plain_left <= 0

    @property
    def overlaps(self) -> bool:
        """Whether the draft works beside the target, or in turn with it.

        Two executors on the same cores have fewer of them each while both work.
        """
        return self._overlaps

    @property
    def _pace(self) -> ThroughputEstimate:
        return self._paces[self._overlaps]

    @property
    def _verification(self) -> LatencyEstimate:
        return self._verifications[self._overlaps]

    @property
    def gamma(self) -> int:
        """γ: so many draft steps as fit beside a verification; in turn with it `rule` decides."""
        if self._options.gamma != "auto":
            return self._options.gamma
        verification = self._verifications[True]
        if not (self._overlaps and self._step.known and verification.known):
            return MOST_GAMMA
        c = verification.cost.seconds(MOST_GAMMA / 2) / self._step.cost.seconds(2)
        return max(1, min(int(c), MOST_GAMMA))

    @property
    def step(self) -> LatencyLine | None:
        """Of a draft step, by branches, where the width of each step is to be chosen by it."""
        if self._options.k_max != "auto":
            return None
        return self._step.cost if self._step.known else LatencyLine(1.0, 0.1)

    def rule(self, signal: Signal | None, serial: bool = False) -> DraftLengthPolicy:
        """How much of a draft to verify.

        Args:
            serial: while it is drafted, the target waits.
        """
        if self._options.epsilon != "auto":
            return DraftLengthPolicy(self._options.epsilon, signal=signal)
        if not (self._pace.rounds and self._step.known):
            return DraftLengthPolicy(reach=0.05, signal=signal, onward=0.2 if serial else None)
        each = self._verification.cost.each
        reach, onward = min(each * self._pace.lately, 0.9), None
        if serial:
            # Of a step more: what a draft takes however short it is (messages) is spent.
            drafting = self._drafting.cost if self._drafting.known else LatencyLine(0.0)
            step = drafting.each or self._step.cost.seconds(1)
            onward = min((step + each) * self._pace.lately, 0.9)
        return DraftLengthPolicy(reach=reach, signal=signal, onward=onward)

    def observe_plain(self, verification: Span, tokens: int = 1) -> None:
        """Take in a round without the draft, and how many tokens it committed."""
        # The first one moves to other cores; and what was looked up is no plain decoding.
        if self._plain_warm and sum(verification.forwards) == 1:
            self._plain.append(verification.seconds)
        self._plain_warm = True
        if self._plain:
            self._plain_left -= tokens
        if self.paused and self._plain:
            self._lately.append((tokens, verification.seconds))
            if len(self._lately) == LATELY and self._pays_again:
                self._plain_left, self._pause = 0, FIRST_PAUSE
        if self._plain_left <= 0 and self.paused:
            self._resume()

    def observe(self, done: Round, seconds: float, lookups: Sequence[Lookup] = ()) -> None:
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
        if done.drafting is not None:
            self._drafting.observe(len(done.drafting.forwards), done.drafting.seconds)
        for burst in (done.drafting, done.branching):
            if burst is not None and burst.forwards:
                steps = len(burst.forwards)
                self._step.observe(sum(burst.forwards) / steps, burst.seconds / steps)
        pace = self._pace
        if self._overlaps and pace.rounds:
            self._serial = pace.serial / pace.rounds
        if not pace.warm:  # the draft had the text to catch up with, the target to move
            pace.warm = True
            return
        pace.observe(done, seconds)
        drafting = done.drafting.seconds if done.drafting is not None else 0.0
        rest = seconds - verification.seconds - drafting
        self._tried[self._overlaps].append((sum(verification.forwards), verification.seconds, rest))
        self._lookups = MEMORY * self._lookups + len(lookups)
        self._looked_up = MEMORY * self._looked_up + sum(each.committed for each in lookups)
        self._rows = MEMORY * self._rows + sum(1 + each.chain for each in lookups)
        if self._options.speculate == "auto":
            if self._plain and pace.rounds > LEAST_JUDGED:
                self._judge()
            self._choose_way()

    def _choose_way(self) -> None:
        """Change between the two ways to draft, if there are two and the other is faster.

        Both are compared by what the same chains take: rates would be of different texts.
        """
        self._stays -= 1
        self._since_change += 1
        if self._stays > 0 or not self._has_ways:
            return
        other = not self._overlaps
        if self._known(other) and self._since_change >= self._retrial:
            self._tried[other].clear()
            self._retrial = min(2 * self._retrial, LONGEST_RETRIAL)
        if not self._known(other) or self._of_chains(other) < self._of_chains(self._overlaps):
            self._change_way()

    def _known(self, overlaps: bool) -> bool:
        """Whether that way to draft was tried, of late."""
        return len(self._tried[overlaps]) >= LEAST_ROUNDS

    def _of_chains(self, overlaps: bool) -> float:
        """Seconds of a round with chains as they are now, drafted in one of the ways."""
        pace = self._pace
        chain = pace.chains / pace.rounds
        # By few rounds with chains of other lengths no line could be drawn, but one be scaled.
        cost, tried = self._verification.cost, self._tried[overlaps]
        seconds = cost.seconds(1 + chain) * median(s / cost.seconds(n) for n, s, _ in tried)
        seconds += median(rest for _, _, rest in tried)
        if self._drafting.known:
            # Beside the target there is a draft stage only where no branch survived.
            serial = self._serial if overlaps else 1 - pace.looked_up / pace.rounds
            seconds += serial * self._drafting.cost.seconds(chain)
        return seconds

    def _change_way(self) -> None:
        self._overlaps, self._stays, self._since_change = not self._overlaps, STAY, 0
        self._pace.warm = False

    @property
    def _pays_again(self) -> bool:
        """Whether, of late, decoding was slower than with the draft when that was turned off."""
        tokens, seconds = map(sum, zip(*self._lately, strict=True))
        return bool(tokens * median(self._plain) < self._with_draft * seconds)

    @property
    def _by_lookup(self) -> float:
        """How much faster than plain decoding it is to verify what the text repeats."""
        if not self._lookups:
            return 1.0
        alone = self._verifications[False]
        cost = (alone if alone.known else self._verification).cost
        longer = cost.seconds(self._rows / self._lookups) / cost.seconds(1)
        return max(1.0, self._looked_up / self._lookups / longer)

    def _judge(self) -> None:
        """Pause where drafting does not pay: after few rounds if by far, else after more."""
        known = [pace for pace in self._paces.values() if pace.rounds > LEAST_JUDGED]
        pace = max(known, key=lambda pace: pace.rate)
        without = self._by_lookup / median(self._plain)
        gain = pace.rate / without
        luck = max(0.0, pace.rounds**-0.5 - LEEWAY)
        if gain * (1 + luck) >= ENOUGH:
            if not luck:
                self._pause = FIRST_PAUSE
            return
        if self._has_ways and not self._known(not self._overlaps):
            self._change_way()
            return
        self._gain, self._with_draft = gain, gain * self._by_lookup
        self._lately.clear()
        # Tokens that would have been committed without the draft, by both ways' time.
        lost = sum(way.seconds * without - way.tokens for way in self._paces.values())
        self._plain_left = max(self._pause, int(lost / TRIALS))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.paused = True
        if not self._said:
            logger.warning(
                "the draft is turned off: with it, decoding ran at %.2f of its speed without; it "
                "is tried again now and then",
                gain,
            )
            self._said = True
