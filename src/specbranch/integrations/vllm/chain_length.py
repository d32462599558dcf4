"""How much of a survivor is verified: what commits the most tokens a second at this batch size."""

from __future__ import annotations

from collections.abc import Sequence

from specbranch.policy.latency import LatencyEstimate, cumulative_acceptance
from specbranch.policy.throughput import ThroughputEstimate

# Least chance that a token is accepted with all before it, while nothing is known, and at any time:
# a token beyond it gains nothing that could be measured.
LEAST = 0.02


class ChainLength:
    """Learns what a verified token costs, and cuts chains where it costs more than it gains.

    One token more in a forward takes `each` seconds. In that time the batch commits `each · rate`
    tokens otherwise. So a token is verified if its chance of acceptance is higher than that. With
    many requests at a time the rate is high, and chains shrink, down to none.

    Args:
        always: verify all that has some chance, whatever it costs.
    """

    def __init__(self, always: bool = False) -> None:
        self._always = always
        self._verification = LatencyEstimate()
        self._throughput = ThroughputEstimate()

    def observe(self, verified: int, committed: int, seconds: float) -> None:
        """Add a step of the engine.

        Args:
            verified: tokens in its forward.
            committed: tokens that it committed.
            seconds: from this step's proposals to the next one's.
        """
        self._verification.observe(verified, seconds)
        self._throughput.observe(committed, seconds)

    @property
    def rate(self) -> float:
        """Tokens per second of all requests together; 0 if unknown."""
        return self._throughput.recent_rate if self._throughput.rounds else 0.0

    @property
    def least(self) -> float:
        """Least chance of acceptance for which a token is verified."""
        if self._always or not self._verification.known:
            return LEAST
        return max(LEAST, self._verification.line.each * self.rate)

    def kept(self, acceptance: Sequence[float], most: int) -> int:
        """How many tokens to verify.

        Args:
            acceptance: estimated for each token, given those before.
            most: tokens that may be verified, 0 or more.
        """
        least = self.least
        chances = cumulative_acceptance(acceptance[: max(0, most)])
        return sum(chance >= least for chance in chances)
