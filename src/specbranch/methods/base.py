"""What a decoding method is: a state machine for one text, which plans and absorbs.

A method says what its text wants next and takes in what came of it. It never waits, holds no worker
and knows no other text. `engine.driver` runs the plans.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from specbranch.config import SpeculativeConfig
from specbranch.metrics import Fates, Round
from specbranch.policy.latency import LatencyLine
from specbranch.policy.signal import Signal
from specbranch.policy.tuning import Tuning
from specbranch.token_sequence import Origin, TokenSequence
from specbranch.workers.messages import (
    Branch,
    BranchText,
    Draft,
    DraftText,
    VerifyResult,
    VerifyText,
)


@dataclass(frozen=True)
class DraftPlan:
    """Draft a chain while the target waits.

    Attributes:
        draft: what to draft.
        overlapped: whether the cores are divided between the models, as in a round that overlaps.
    """

    draft: DraftText
    overlapped: bool = False


@dataclass(frozen=True)
class VerifyPlan:
    """Verify a chain, and branch at once if `branch` is given.

    Attributes:
        verify: what to verify.
        branch: what to branch for meanwhile.
        overlapped: whether the cores are divided between the models.
        step: latency of a draft step, see `BranchRequest`.
        stop_branching: whether the branch stage ends when the verification does.
        judge: whether H-RAD is asked about this verification.
    """

    verify: VerifyText
    branch: BranchText | None = None
    overlapped: bool = False
    step: LatencyLine | None = None
    stop_branching: bool = False
    judge: bool = False


Plan = DraftPlan | VerifyPlan


@dataclass
class MethodContext:
    """What a method is made for.

    Attributes:
        sequence: the text. The method commits to it.
        config: how much to draft.
        tuning: what was learned from the pair's earlier texts.
        divides_cores: whether the target has fewer cores while the draft works, so that drafting
            in sequence is a mode to weigh.
    """

    sequence: TokenSequence
    config: SpeculativeConfig = field(default_factory=SpeculativeConfig)
    tuning: Tuning = field(default_factory=lambda: Tuning(SpeculativeConfig()))
    divides_cores: bool = False


class Method(ABC):
    """A decoding method at work on one text.

    A round is: any number of `DraftPlan`, each followed by `absorb_draft`; then one `VerifyPlan`,
    followed by `absorb_verification`, `absorb_branches` and `observe`.

    Attributes:
        sequence: the text.
    """

    def __init__(self, context: MethodContext) -> None:
        self.sequence = context.sequence
        self._config = context.config

    @property
    def in_flight(self) -> int:
        """Drafted tokens that no round has decided on yet, if the text were to end here."""
        return 0

    @abstractmethod
    def plan(self) -> Plan:
        """What the text wants next. It is asked only while the text is not finished."""

    def absorb_draft(self, draft: Draft) -> None:
        """Take in the chain of a `DraftPlan`."""
        raise NotImplementedError(f"{type(self).__name__} plans no draft stage")

    @abstractmethod
    def absorb_verification(self, result: VerifyResult) -> Round:
        """Commit what a verification decided; returns the round so far."""

    def absorb_branches(
        self, done: Round, branches: Sequence[Branch], signal: Signal | None
    ) -> None:
        """Take in the branches that were grown meanwhile, and complete the round.

        Args:
            done: the round that `absorb_verification` returned.
            branches: none if none were asked for, or if they were lost with the drafter.
            signal: what H-RAD says of the verification, if it was asked.
        """
        return  # most methods have no branches

    def observe(self, done: Round) -> None:
        """Learn from a round, whose spans and seconds are now known."""
        return  # most methods learn nothing


def commit(sequence: TokenSequence, chain: list[int], result: VerifyResult) -> Round:
    """Commit what a verification made of a chain: its accepted part, and the token after that.

    Returns:
        The round, without its spans. Its fates are those of the chain.
    """
    accepted = result.accepted
    tokens = [*chain[:accepted], result.token]
    origins = [Origin.CHAIN] * accepted + [Origin.TARGET]
    committed = sequence.commit(tokens, origins)
    sequence.logprobs += result.logprobs[:committed]
    sequence.forced = result.forced
    used = min(accepted, committed)  # the text may end within the chain
    return Round(
        chain=len(chain),
        accepted=accepted,
        outcome="rollback" if accepted < len(chain) else "end",
        tokens=tokens[:committed],
        origins=[*origins[:committed]],
        fates=Fates(accepted=used, rolled_back=len(chain) - accepted, in_flight=accepted - used),
    )
