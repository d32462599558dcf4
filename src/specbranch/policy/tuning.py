"""Self-tuning of speculation: draft length, branch width, mode, and whether to speculate at all.

`Tuning` composes the latency model, the choice of a mode and the gate. Its estimates belong to one
pair of models on its executors, and are kept from one request to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specbranch.config import MOST_GAMMA, SpeculativeConfig
from specbranch.policy.acceptance import Calibration
from specbranch.policy.draft_length import DraftLengthPolicy
from specbranch.policy.gate import LEAST_ROUNDS, SpeculationGate
from specbranch.policy.latency import LatencyLine, LatencyModel, Mode
from specbranch.policy.mode import ModeSample, ModeSelector
from specbranch.policy.ngram import Lookup
from specbranch.policy.signal import Signal
from specbranch.policy.throughput import ThroughputEstimate
from specbranch.timing import Span

# While nothing is measured: of a draft step by branches, and the acceptance worth drafting for.
ASSUMED_STEP = LatencyLine(1.0, 0.1)
ASSUMED_CUMULATIVE, ASSUMED_NEXT = 0.05, 0.2
MAX_THRESHOLD = 0.9  # of acceptance, however slow a token is


class SpeculativeRound(Protocol):
    """What is measured of a round with the draft model (see `Round`)."""

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids committed."""

    @property
    def chain(self) -> int:
        """Length of the chain verified."""

    @property
    def retrieved(self) -> bool:
        """Whether the chain was retrieved from earlier in the text."""

    @property
    def drafting(self) -> Span | None:
        """Of the draft stage, if there was one."""

    @property
    def branching(self) -> Span | None:
        """Of the branch stage, if there was one."""

    @property
    def verification(self) -> Span | None:
        """Of the verification."""


class Tuning:
    """Estimates and choices for one way to decode.

    Args:
        config: values in it that are not `auto` are used as they are.

    Attributes:
        calibration: acceptance of n-gram matches, by `Match.strengths`.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._latency = LatencyModel()
        self._throughputs = {mode: ThroughputEstimate() for mode in Mode}
        self._modes = ModeSelector()
        self._gate = SpeculationGate()
        self.calibration = Calibration(least=0.0)

    def begin(self, competing: bool) -> None:
        """Note that another text begins.

        Args:
            competing: whether the target is faster while the draft waits, so that sequential
                drafting is possible, too.
        """
        if competing and self._config.speculate == "auto":
            self._modes.offer_sequential()
        if self._gate.begin():
            self._forget_throughputs()

    @property
    def speculates(self) -> bool:
        """Whether the next round uses the draft model, unless a chain is drafted already."""
        return self._config.speculate == "always" or self._gate.speculates

    @property
    def paused(self) -> bool:
        """Whether speculation is turned off because it was slower."""
        return self._gate.paused

    @property
    def paused_reason(self) -> str | None:
        """Why speculation is paused, in words; None unless it is."""
        return self._gate.reason

    @property
    def overlaps(self) -> bool:
        """Whether the draft works during the verification; if not, the two alternate."""
        return self._modes.mode is Mode.OVERLAPPED

    @property
    def gamma(self) -> int:
        """γ: draft steps that fit into a verification. In the sequential mode `rule` decides."""
        if self._config.gamma != "auto":
            return self._config.gamma
        steps = self._latency.steps_during(MOST_GAMMA / 2) if self.overlaps else None
        return MOST_GAMMA if steps is None else max(1, min(steps, MOST_GAMMA))

    @property
    def step(self) -> LatencyLine | None:
        """Latency of a draft step by branches; None where the width is not chosen by it."""
        if self._config.k_max != "auto":
            return None
        return self._latency.step.line if self._latency.step.known else ASSUMED_STEP

    def rule(self, signal: Signal | None, serial: bool = False) -> DraftLengthPolicy:
        """How much of a draft to verify.

        Args:
            signal: H-RAD's, if there is one.
            serial: whether the target waits while it is drafted.
        """
        if self._config.epsilon != "auto":
            return DraftLengthPolicy(self._config.epsilon, signal=signal)
        mode = self._modes.mode
        throughput, latency = self._throughputs[mode], self._latency
        if not (throughput.rounds and latency.step.known):
            return DraftLengthPolicy(
                min_cumulative_acceptance=ASSUMED_CUMULATIVE,
                signal=signal,
                min_next_acceptance=ASSUMED_NEXT if serial else None,
            )
        # A token is worth its time where it commits more than decoding does in the same time.
        each, rate = latency.verification[mode].line.each, throughput.recent_rate
        min_next = None
        if serial:
            min_next = min((latency.extra_step_seconds() + each) * rate, MAX_THRESHOLD)
        return DraftLengthPolicy(
            min_cumulative_acceptance=min(each * rate, MAX_THRESHOLD),
            signal=signal,
            min_next_acceptance=min_next,
        )

    def observe_plain(self, verification: Span, tokens: int = 1) -> None:
        """Add a round without the draft model.

        Args:
            verification: of the target.
            tokens: committed by it.
        """
        if self._gate.observe_plain(verification.seconds, sum(verification.forwards), tokens):
            self._forget_throughputs()

    def observe(
        self, done: SpeculativeRound, seconds: float, lookups: Sequence[Lookup] = ()
    ) -> None:
        """Add a round with the draft model.

        Args:
            done: the round; it has a verification.
            seconds: duration of the round.
            lookups: rounds that decoding by lookup alone would have ended meanwhile.
        """
        verification, drafting = done.verification, done.drafting
        assert verification is not None
        rows, mode = sum(verification.forwards), self._modes.mode
        self._gate.observe_speculative()
        self._latency.verification[mode].observe(rows, verification.seconds)
        if drafting is not None:
            self._latency.draft_stage.observe(len(drafting.forwards), drafting.seconds)
        for span in (drafting, done.branching):
            if span is not None:
                self._latency.observe_steps(span.forwards, span.seconds)
        throughput = self._throughputs[mode]
        if mode is Mode.OVERLAPPED and throughput.rounds:
            self._modes.draft_stage_share = throughput.draft_stage_share
        if not throughput.warm:
            throughput.warm = True
            return
        throughput.observe(
            len(done.tokens), seconds, done.chain, done.retrieved, drafting is not None
        )
        overhead = seconds - verification.seconds - (drafting.seconds if drafting else 0.0)
        self._modes.observe(ModeSample(rows, verification.seconds, overhead))
        self._gate.observe_lookups(lookups)
        if self._config.speculate == "auto":
            if self._gate.plain_known and throughput.rounds > LEAST_ROUNDS:
                self._pause_or_change_mode()
            self._choose_mode()

    def _pause_or_change_mode(self) -> None:
        """Where speculation does not pay, try the other mode, or else pause."""
        throughputs = self._throughputs.values()
        alone = self._latency.verification_alone(self._modes.mode)
        if self._gate.pays(throughputs, alone):
            return
        if self._modes.other_untried:
            self._modes.change()
            self._throughputs[self._modes.mode].warm = False
        else:
            self._gate.pause(throughputs, alone)

    def _choose_mode(self) -> None:
        now = self._throughputs[self._modes.mode]
        if self._modes.choose(now.mean_chain, now.retrieved_share, self._latency):
            self._throughputs[self._modes.mode].warm = False

    def _forget_throughputs(self) -> None:
        self._throughputs = {mode: ThroughputEstimate() for mode in Mode}
