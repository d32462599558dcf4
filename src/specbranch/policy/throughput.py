"""The throughput estimate: tokens per second of speculative rounds, and the chains they had."""

from __future__ import annotations

from specbranch.policy.latency import OUTLIER

DECAY = 0.99  # of a round's weight with each later one
SHORT_DECAY = 0.95  # the same for the recent rate, which follows the text more closely
LEAST_ROUNDS = 3  # weight of rounds that an estimate needs before outliers are capped by it


class ThroughputEstimate:
    """Exponentially decaying sums over the rounds of one mode.

    Attributes:
        rounds: number of rounds.
        tokens: tokens committed.
        seconds: duration of the rounds.
        chain_tokens: tokens of all chains verified.
        retrieved: number of rounds whose chain was retrieved from earlier in the text.
        draft_stages: number of rounds in which the target waited for the draft model.
        warm: whether the first round was seen. That one is not measured, because the draft model
            first reads the text that it has missed.
    """

    def __init__(self) -> None:
        self.rounds = self.tokens = self.seconds = 0.0
        self.chain_tokens = self.retrieved = self.draft_stages = 0.0
        self._recent_tokens = self._recent_seconds = 0.0
        self.warm = False

    def observe(
        self,
        tokens: int,
        seconds: float,
        chain: int = 0,
        retrieved: bool = False,
        draft_stage: bool = False,
    ) -> None:
        """Add a round.

        Args:
            tokens: committed by it.
            seconds: duration of it.
            chain: length of its chain.
            retrieved: whether the chain was retrieved from earlier in the text.
            draft_stage: whether the target waited for a draft stage.
        """
        if self.rounds > LEAST_ROUNDS:
            seconds = min(seconds, OUTLIER * self.seconds / self.rounds)
        self.rounds = DECAY * self.rounds + 1
        self.tokens = DECAY * self.tokens + tokens
        self.seconds = DECAY * self.seconds + seconds
        self.chain_tokens = DECAY * self.chain_tokens + chain
        self.retrieved = DECAY * self.retrieved + retrieved
        self.draft_stages = DECAY * self.draft_stages + (draft_stage and not retrieved)
        self._recent_tokens = SHORT_DECAY * self._recent_tokens + tokens
        self._recent_seconds = SHORT_DECAY * self._recent_seconds + seconds

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def recent_rate(self) -> float:
        """Tokens per second over fewer, more recent rounds."""
        return self._recent_tokens / self._recent_seconds

    @property
    def mean_chain(self) -> float:
        """Mean length of a chain; 0 without rounds."""
        return self.chain_tokens / self.rounds if self.rounds else 0.0

    @property
    def draft_stage_share(self) -> float:
        """Share of the rounds in which the target waited for the draft model; 0 without rounds."""
        return self.draft_stages / self.rounds if self.rounds else 0.0

    @property
    def retrieved_share(self) -> float:
        """Share of the rounds with a retrieved chain; 0 without rounds."""
        return self.retrieved / self.rounds if self.rounds else 0.0
