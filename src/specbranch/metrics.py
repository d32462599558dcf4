"""What is counted, with one definition everywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from specbranch.timing import Span


@dataclass
class Fates:
    """How many drafted tokens met which end; every drafted token meets exactly one.

    Attributes:
        accepted: committed.
        rolled_back: on the main path when the target rejected them or one before them. When no
            branch survives, the likeliest branch was the main path.
        pruned: dropped by choice from a survivor's tail.
        hedged: on branches beside the main path.
        in_flight: not yet decided when generation ended.
    """

    accepted: int = 0
    rolled_back: int = 0
    pruned: int = 0
    hedged: int = 0
    in_flight: int = 0

    @property
    def total(self) -> int:
        """All tokens that the draft executor produced."""
        return sum(asdict(self).values())

    def __add__(self, other: Fates) -> Fates:
        return Fates(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Round:
    """One target verification and the drafting that went with it.

    Attributes:
        draft_stage: whether the target waited for a serial draft before it.
        chain: tokens verified.
        retrieved: whether those are from earlier in the text.
        branches: candidates prepared meanwhile.
        branch_tokens: tokens of all branches together.
        accepted: how many of the chain the target accepted.
        outcome: `hit` (a branch survived), `miss` (none did), `rollback` (the chain broke), or
            `end` where nothing was at stake after the chain.
        tokens: ids committed in this round.
        origins: where each came from.
        fates: of the drafted tokens whose end this round decided.
        drafting, branching, verification: when the executors worked on it.
        seconds: time of the round, from the end of the last one.
    """

    draft_stage: bool = False
    chain: int = 0
    retrieved: bool = False
    branches: int = 0
    branch_tokens: int = 0
    accepted: int = 0
    outcome: Literal["hit", "miss", "rollback", "end"] = "end"
    tokens: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    fates: Fates = field(default_factory=Fates)
    drafting: Span | None = None
    branching: Span | None = None
    verification: Span | None = None
    seconds: float = 0.0

    @property
    def spans(self) -> list[Span]:
        """Of every executor call that was made."""
        return [s for s in (self.drafting, self.branching, self.verification) if s is not None]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass
class Metrics:
    """Sums over the rounds of one or more requests.

    Attributes:
        committed: tokens generated.
        target_calls: target verifications (plain decoding: forwards).
        draft_stages: serial drafts, during which the target waited.
        hits, misses, rollbacks: rounds by outcome.
        seconds: wall-clock time of decoding, the prompt's included.
    """

    committed: int = 0
    target_calls: int = 0
    draft_stages: int = 0
    hits: int = 0
    misses: int = 0
    rollbacks: int = 0
    seconds: float = 0.0
    fates: Fates = field(default_factory=Fates)

    def add(self, done: Round) -> None:
        """Count one more round; its time is not part of `seconds`, which the caller measures."""
        self.committed += len(done.tokens)
        self.target_calls += 1
        self.draft_stages += done.draft_stage
        self.hits += done.outcome == "hit"
        self.misses += done.outcome == "miss"
        self.rollbacks += done.outcome == "rollback"
        self.fates += done.fates

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def mean_accepted_length(self) -> float:
        """M: tokens committed per target verification."""
        return _ratio(self.committed, self.target_calls)

    @property
    def rollback_rate(self) -> float:
        """RB: rolled-back tokens ÷ tokens drafted on the main path."""
        main = self.fates.accepted + self.fates.rolled_back + self.fates.pruned
        return _ratio(self.fates.rolled_back, main)

    @property
    def tokens_per_second(self) -> float:
        return _ratio(self.committed, self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """All figures, the derived ones included, as JSON types."""
        derived = ("mean_accepted_length", "rollback_rate", "tokens_per_second")
        return asdict(self) | {name: round(getattr(self, name), 4) for name in derived}
