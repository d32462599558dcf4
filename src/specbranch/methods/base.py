"""What every decoding method is given, and what it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from specbranch.config import SpeculativeConfig
from specbranch.executors.base import Executor
from specbranch.executors.cpu_affinity import AffinityPlan
from specbranch.metrics import Fates, Round
from specbranch.policy.tuning import Tuning
from specbranch.sequence import Origin, Sequence
from specbranch.workers.messages import Verification


@dataclass
class Executors:
    """The two executors of a pair; plain decoding has no draft.

    Attributes:
        affinity: their shares of the cores; None leaves them as they are.
        tunings: what was learned so far, by the options it was learned with, and of which texts:
            of greedy ones, or of sampled ones, whose drafts are accepted less often.
        greedy: whether the next text is.
        closed: whether the executors were released.
    """

    target: Executor
    draft: Executor | None = None
    affinity: AffinityPlan | None = None
    tunings: dict[tuple[SpeculativeConfig, bool], Tuning] = field(default_factory=dict)
    greedy: bool = True
    closed: bool = False
    _target_overlaps: bool | None = None

    def all(self) -> list[Executor]:
        return [executor for executor in (self.target, self.draft) if executor is not None]

    def tuning(self, options: SpeculativeConfig) -> Tuning:
        """What was learned of such texts with these options so far."""
        return self.tunings.setdefault((options, self.greedy), Tuning(options))

    @property
    def compete(self) -> bool:
        """Whether the target has less of the machine while the draft works."""
        affinity = self.affinity
        return affinity is not None and affinity.share("target", False) != affinity.target

    def share_target(self, overlap: bool) -> None:
        """Give the target its share of the cores, or all while the draft has nothing to do."""
        if self.affinity is not None and overlap != self._target_overlaps:
            self.target.set_affinity(self.affinity.share("target", overlap))
            self._target_overlaps = overlap


class Decoder(Protocol):
    """A decoding method. The sequence must be open on the executors that the method uses."""

    def __call__(
        self, sequence: Sequence, executors: Executors, options: SpeculativeConfig
    ) -> Iterator[Round]:
        """Generate until the sequence is finished, yielding each round when it is committed."""


def commit(
    sequence: Sequence,
    chain: list[int],
    outcome: Verification,
    last: Origin = Origin.TARGET,
) -> Round:
    """Commit what a verification made of a chain: its accepted part, and the token after that.

    Args:
        last: where the token after the chain comes from.

    Returns:
        The round, without the calls that led to it. Its fates are those of the chain.
    """
    accepted = outcome.accepted
    tokens = [*chain[:accepted], outcome.token]
    origins = [Origin.CHAIN] * accepted + [last]
    committed = sequence.commit(tokens, origins)
    used = min(accepted, committed)  # the text may end within the chain
    return Round(
        chain=len(chain),
        accepted=accepted,
        outcome="rollback" if accepted < len(chain) else "end",
        tokens=tokens[:committed],
        origins=[*origins[:committed]],
        fates=Fates(accepted=used, rolled_back=len(chain) - accepted, in_flight=accepted - used),
    )
