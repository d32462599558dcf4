"""What became of a chain: the outcome of a verification, matched with the branches for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """How an outcome met what was prepared.

    `FRESH`: nothing was prepared yet, because the text just began. `HIT`: there was a branch.
    `MISS`: there was none among the branches. `LATE`: no branch had arrived. `CUT`: the commit ends
    inside the chain, because the scheduler or a grammar cut what was verified. `BEYOND`: more was
    committed than one verification gives.
    """

    FRESH = "fresh"
    HIT = "hit"
    MISS = "miss"
    LATE = "late"
    CUT = "cut"
    BEYOND = "beyond"


@dataclass
class Prepared:
    """A branch as far as it has arrived.

    Attributes:
        accepted: how many tokens of the chain its outcome accepts.
        tokens: the target's token in that outcome, and the continuation.
        acceptance: estimated for each token of the continuation, given those before.
    """

    accepted: int
    tokens: list[int] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """An outcome, in terms of the drafter's path.

    Attributes:
        kind: of the outcome.
        accepted: how many tokens of the chain were committed.
        kept: how many tokens of the path after the formerly committed ones stay valid.
        tokens: committed tokens that follow them.
        survivor: index of the branch whose path it is, or None.
    """

    kind: Kind
    accepted: int
    kept: int
    tokens: tuple[int, ...]
    survivor: int | None = None


def match(
    chain: Sequence[int], committed: Sequence[int], branches: Sequence[Prepared], fresh: bool
) -> Outcome:
    """The outcome that committed these tokens.

    Args:
        chain: what the drafter's path has after the formerly committed tokens. Fewer of them may
            have been verified.
        committed: since then, at least one token.
        branches: as far as they have arrived.
        fresh: whether the text just began.
    """
    accepted = 0
    for ours, theirs in zip(chain, committed, strict=False):
        if ours != theirs:
            break
        accepted += 1
    if accepted == len(committed):
        # The drafter starts a chain after committed tokens: the last one is told as such.
        return Outcome(Kind.CUT, accepted, accepted - 1, (committed[-1],))
    rest = tuple(committed[accepted:])
    if len(rest) > 1:
        return Outcome(Kind.BEYOND, accepted, accepted, rest)
    for index, branch in enumerate(branches):
        if branch.accepted == accepted and branch.tokens and branch.tokens[0] == rest[0]:
            return Outcome(Kind.HIT, accepted, accepted + 1, (), index)
    kind = Kind.FRESH if fresh else Kind.MISS if branches else Kind.LATE
    return Outcome(kind, accepted, accepted, rest)
