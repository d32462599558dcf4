"""What every decoding method is given, and what it yields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from specbranch.lanes.base import Lane
from specbranch.lanes.placement import Placement
from specbranch.metrics import Fates, Round
from specbranch.options import DecodingOptions
from specbranch.sequence import Origin, Sequence
from specbranch.tuning import Tuning
from specbranch.workers.messages import Verification


@dataclass
class Lanes:
    """The two lanes of a pair; plain decoding has no draft.

    Attributes:
        placement: their shares of the cores; None leaves them as they are.
        tunings: what was learned so far, by the options it was learned with, and of which texts:
            of greedy ones, or of sampled ones, whose drafts are accepted less often.
        greedy: whether the next text is.
        closed: whether the lanes were released.
    """

    target: Lane
    draft: Lane | None = None
    placement: Placement | None = None
    tunings: dict[tuple[DecodingOptions, bool], Tuning] = field(default_factory=dict)
    greedy: bool = True
    closed: bool = False
    _target_overlaps: bool | None = None

    def all(self) -> list[Lane]:
        return [lane for lane in (self.target, self.draft) if lane is not None]

    def tuning(self, options: DecodingOptions) -> Tuning:
        """What was learned of such texts with these options so far."""
        return self.tunings.setdefault((options, self.greedy), Tuning(options))

    @property
    def compete(self) -> bool:
        """Whether the target has less of the machine while the draft works."""
        placement = self.placement
        return placement is not None and placement.share("target", False) != placement.target

    def share_target(self, overlap: bool) -> None:
        """Give the target its share of the cores, or all while the draft has nothing to do."""
        if self.placement is not None and overlap != self._target_overlaps:
            self.target.occupy(self.placement.share("target", overlap))
            self._target_overlaps = overlap


class Decoder(Protocol):
    """A decoding method. The sequence must be open on the lanes that the method uses."""

    def __call__(
        self, sequence: Sequence, lanes: Lanes, options: DecodingOptions
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
