"""Whether vLLM waits for a draft where no branch fits, by measured times."""

from __future__ import annotations

from specbranch.policy.latency import LatencyEstimate

TRIALS = 3  # waits that are measured before the estimate decides
RETRY = 64  # misses after which a wait is measured again
FEW = 3  # requests at a time up to which that is done
SLACK = 3.0  # times the expected duration that a wait may last
DECAY = 0.95  # of a wait's weight with each later one


class WaitPolicy:
    """Chooses how many tokens to wait for.

    Waiting t seconds costs the batch the tokens that it commits in that time. It gains, for each
    row without a branch, the draft tokens that are accepted.

    Args:
        gamma: γ, most tokens.
        longest: seconds that a wait may last; 0 never waits.
    """

    def __init__(self, gamma: int, longest: float) -> None:
        self._gamma = gamma
        self._longest = longest
        self._duration = LatencyEstimate()
        self._trials = self._misses = 0
        self._weight = 1.0
        self._acceptance = 0.7

    def tokens(self, missed: int, rows: int, rate: float) -> int:
        """How many tokens to wait for; 0 is not at all.

        Args:
            missed: rows without a branch.
            rows: of the batch.
            rate: tokens per second of the batch.
        """
        if not missed or not self._longest:
            return 0
        self._misses += 1
        if rows <= FEW and (self._trials < TRIALS or self._misses % RETRY == 0):
            # Waits of different lengths tell what a token costs, and what the way costs.
            return 1 + (self._trials * (self._gamma - 1)) // TRIALS
        if not self._duration.known:
            return 0
        best, most = 0, 0.0
        gained, chance = 0.0, 1.0
        for n in range(1, self._gamma + 1):
            chance *= self._acceptance
            gained += missed * chance
            seconds = self._duration.line.seconds(n)
            if seconds <= self._longest and gained - rate * seconds > most:
                best, most = n, gained - rate * seconds
        return best

    def deadline(self, tokens: int) -> float:
        """Seconds after which a wait for so many tokens is given up."""
        if not self._duration.known:
            return self._longest
        return min(self._longest, SLACK * self._duration.line.seconds(tokens))

    def observe(self, tokens: int, seconds: float) -> None:
        """Add a wait, which may have been given up."""
        self._trials += 1
        self._duration.observe(tokens, seconds)

    def learn(self, proposed: int, accepted: int) -> None:
        """Add a verified chain that was waited for."""
        tested = min(proposed, accepted + 1)
        if tested:
            self._weight = DECAY * self._weight + tested
            self._acceptance += (accepted - tested * self._acceptance) / self._weight
