"""What became of a chain: the outcome of a verification, matched with the branches for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """How an outcome met what was prepared.

    `FRESH`: nothing was prepared yet, because the text just began. `HIT`: there was a branch, whose
    continuation may be committed in part, too, if it arrived late. `MISS`: there was none among the
    branches. `LATE`: no branch had arrived. `CUT`: the commit ends inside the chain, because the
    scheduler or a grammar cut what was verified, and the rest of the chain is what comes next.
    """

    FRESH = "fresh"
    HIT = "hit"
    MISS = "miss"
    LATE = "late"
    CUT = "cut"


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
        kept: how many tokens of the path after the formerly committed ones are committed now.
        tokens: committed tokens that follow them. The path goes on if there are none.
        survivor: index of the branch whose path it is, or None.
    """

    kind: Kind
    accepted: int
    kept: int
    tokens: tuple[int, ...] = ()
    survivor: int | None = None


def match(
    chain: Sequence[int], committed: Sequence[int], branches: Sequence[Prepared], fresh: bool
) -> Outcome:
    """The outcome that committed these tokens.

    Args:
        chain: what the drafter's path has after the formerly committed tokens. Fewer of them may
            have been verified.
        committed: since then, at least one token, in one step or in several.
        branches: as far as they have arrived.
        fresh: whether the text just began.
    """
    accepted = common(chain, committed)
    if accepted == len(committed):
        return Outcome(Kind.CUT, accepted, accepted)
    rest = tuple(committed[accepted:])
    for index, branch in enumerate(branches):
        if branch.accepted == accepted and common(branch.tokens, rest) == len(rest):
            return Outcome(Kind.HIT, accepted, len(committed), (), index)
    kind = Kind.FRESH if fresh else Kind.MISS if branches else Kind.LATE
    return Outcome(kind, accepted, accepted, rest)


def common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that differ."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
