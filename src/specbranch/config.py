"""How to draft: what a user may set, and need not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from specbranch.errors import InputError

Branching = Literal["outcomes", "point", "even"]
MOST_GAMMA = 15  # of γ = auto: with the last committed token a chain fills a fixed width of 16
MOST_BRANCHES = 12  # of k_max = auto


@dataclass(frozen=True)
class SpeculativeConfig:
    """How much to draft. `auto` is what pays, by running estimates (see `tuning`).

    Attributes:
        gamma: γ, most tokens drafted ahead in one round; `auto` is as many as the draft has time
            for, and stops a branch stage when the chain is verified.
        epsilon: ε, a token's chance of acceptance below which a position is uncertain; `auto`
            drafts as long as that chance is worth its time.
        k_max: most branches in one round; `auto` has those grow that are worth their time.
        branching: for what: the likeliest `outcomes` anywhere on the chain (DESIGN §4b), the
            candidates at the one branch `point` after it (the paper), or the best ones of every
            place alike, `even` (a fixed fan-out, as in SSD, arXiv 2603.03251).
        speculate: `always`, or `auto`: not while decoding by what the text repeats, or plainly, on
            the cores of both models is faster.
        hrad: whether the predictor is asked, where there is one; with `coupled` sampling, whose
            noise tells more, only beside a fixed ε.
        retrieval: whether a text that repeats itself is drafted from itself.

    Raises:
        InputError: a value out of its range.
    """

    gamma: int | Literal["auto"] = "auto"
    epsilon: float | Literal["auto"] = "auto"
    k_max: int | Literal["auto"] = "auto"
    branching: Branching = "outcomes"
    speculate: Literal["auto", "always"] = "auto"
    hrad: bool = True
    retrieval: bool = True

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("gamma", "k_max")}
        checks = [
            (name, value == "auto" or (isinstance(value, int) and value >= 1), "1 or more, or auto")
            for name, value in counts.items()
        ]
        number = isinstance(self.epsilon, int | float) and 0 <= self.epsilon <= 1
        checks.append(("epsilon", self.epsilon == "auto" or number, "between 0 and 1, or auto"))
        for name, words in (
            ("branching", get_args(Branching)),
            ("speculate", ("auto", "always")),
        ):
            checks.append((name, getattr(self, name) in words, " or ".join(words)))
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")

    @property
    def branches(self) -> int:
        """Most branches in one round."""
        return MOST_BRANCHES if self.k_max == "auto" else self.k_max

    @property
    def longest(self) -> int:
        """Most tokens drafted ahead in one round, however fast the draft is."""
        return MOST_GAMMA if self.gamma == "auto" else self.gamma

    @property
    def retrieved(self) -> int:
        """Most of them that may come from earlier in the text."""
        return self.longest if self.retrieval else 0

    @property
    def branch_tokens(self) -> int:
        """Most tokens that the branches of one round hold together."""
        return self.branches * (self.longest + 1)
