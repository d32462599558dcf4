"""What speculative decoding can gain: expected speed by acceptance, speed ratio and draft length.

The model of the papers: each draft token is accepted with probability α, whatever came before; a
draft step takes t, a target forward of however many tokens c · t. A speed-up is over plain decoding
of the same target, which takes c · t a token, and assumes, as they do, that the draft has hardware
of its own. Speeds are mean tokens of a round ÷ its mean time, to which the long run converges.

Where the formula of the paper (Shen et al., arXiv 2506.01979) is not what its rounds come to, it is
here under a name with `paper`; `docs/theory.md` holds the two side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specbranch.errors import InputError
from specbranch.policy.latency import cumulative_acceptance

MOST_GAMMA = 256  # that `best_gamma` tries


def accepted_probability(alpha: float, gamma: int, accepted: int) -> float:
    """That just so many of γ draft tokens are accepted (paper §4: the truncated geometric law).

    ``P(X = k) = (1 − α) · α^k`` for k < γ, and ``α^γ`` for k = γ.

    Raises:
        InputError: as every function here, for a value out of its range.
    """
    _check(alpha=alpha, gamma=gamma)
    if not 0 <= accepted <= gamma:
        return 0.0
    return alpha**gamma if accepted == gamma else (1 - alpha) * alpha**accepted


def expected_accepted(alpha: float, gamma: int) -> float:
    """Mean of the truncated geometric law: ``Σ_{j=1..γ} α^j = α · (1 − α^γ) / (1 − α)``."""
    _check(alpha=alpha, gamma=gamma)
    return sum(cumulative_acceptance([alpha] * gamma))


def paper_ideal_latency(gamma: int, c: float, t: float = 1.0) -> float:
    """Time a token where all are accepted (paper §4): ``T_PSD = max(γ · t, c · t) / γ``.

    Draft and target work at the same time, γ tokens a round: PEARL's rounds with α = 1.
    """
    _check(gamma=gamma, c=c, t=t)
    return max(gamma, c) * t / gamma


def paper_rollback_latency(alpha: float, gamma: int, c: float, t: float = 1.0) -> float:
    """Time a token with rollback, as printed (paper, theorem 1).

    ``T_PSDr = 2 · max(γ · t, c · t) / ((1 + α^γ) · α · (1 − α^γ) / (1 − α))``

    The denominator is `expected_accepted` of 2γ tokens: two rounds, the second of which goes on
    where the first was accepted whole. That leaves out the target's own token of each verification,
    so that for a small α it is slower than plain decoding, and it stops counting after 2γ tokens.
    `pearl_latency` is what the rounds come to.
    """
    _check(alpha=alpha, gamma=gamma, c=c, t=t)
    if alpha == 0:
        return float("inf")
    return 2 * max(gamma, c) * t / expected_accepted(alpha, 2 * gamma)


def pearl_latency(alpha: float, gamma: int, c: float, t: float = 1.0) -> float:
    """Time a token with rollback, by PEARL's rounds (Liu et al., arXiv 2408.11850); derived here.

    A round takes ``max(γ, c) · t``. A pre-verify commits one token, and with probability α a
    post-verify follows; that commits ``(1 − α^γ) / (1 − α)`` on average, and with probability α^γ
    another follows. So a round commits ``G / (1 + α − α^γ)`` in the long run, where
    ``G = Σ_{j<γ} α^j``.
    """
    _check(alpha=alpha, gamma=gamma, c=c, t=t)
    committed = 1 + expected_accepted(alpha, gamma) - alpha**gamma
    return max(gamma, c) * t * (1 + alpha - alpha**gamma) / committed


def sps_speedup(alpha: float, gamma: int, c: float) -> float:
    """Of SpS (Leviathan et al. 2023, theorem 3.8, whose c is 1/c here).

    A round drafts γ tokens, then verifies them, and commits one more than were accepted.
    """
    _check(alpha=alpha, gamma=gamma, c=c)
    return c * (1 + expected_accepted(alpha, gamma)) / (gamma + c)


def pearl_speedup(alpha: float, gamma: int, c: float) -> float:
    """Of PEARL, by `pearl_latency`."""
    return c / pearl_latency(alpha, gamma, c)


def specbranch_speedup(
    alpha: float,
    gamma: int,
    c: float,
    hit: float,
    branches: int = 1,
    branch_cost: float = 0.0,
) -> float:
    """Of SpecBranch with one branch point, after γ tokens (docs/design.md); derived here.

    Every round verifies γ tokens and commits one more than were accepted. Beside that the draft
    makes a step for the candidates, and γ with all branches. Unless the chain was accepted and a
    branch survived, γ steps of serial drafting precede the next round.

    Args:
        hit: h, probability that the target's token after an accepted chain is a candidate; α
            where there is one branch.
        branches: k.
        branch_cost: what each further branch adds to a draft step, as a share of it.
    """
    _check(alpha=alpha, gamma=gamma, c=c, hit=hit, branches=branches, branch_cost=branch_cost)
    drafting = 1 + gamma * (1 + branch_cost * (branches - 1))
    serial = gamma * (1 - hit * alpha**gamma)
    return c * (1 + expected_accepted(alpha, gamma)) / (max(drafting, c) + serial)


def cut_specbranch_speedup(
    alpha: float,
    c: float,
    hit: float,
    after_draft: Sequence[int],
    after_hit: Sequence[int],
    drafted: float,
    branching: float,
) -> float:
    """Of SpecBranch with one branch point, its chains cut where they become doubtful; derived here.

    A chain's length depends on whether the round follows a draft stage or a surviving branch. From
    either, the next round follows a branch with probability ``h · E[α^γ]``, so draft stages come
    before a share of the rounds that is that of a Markov chain of two states. Of equal lengths it
    is `specbranch_speedup`.

    Args:
        hit: as there.
        after_draft: lengths of the chains, 0 or more, after a draft stage, as often as they occur.
        after_hit: the same after a surviving branch.
        drafted: mean steps of a draft stage; what is cut was drafted all the same.
        branching: mean draft steps beside a verification.

    Raises:
        InputError: a value out of its range, or no lengths.
    """
    _check(alpha=alpha, c=c, hit=hit, drafted=drafted, branching=branching)
    if not after_draft or not after_hit or min(*after_draft, *after_hit) < 0:
        raise InputError("lengths of chains must be 0 or more, and there must be some")
    on, again = (
        hit * sum(alpha**n for n in lengths) / len(lengths) for lengths in (after_draft, after_hit)
    )
    share = (1 - again) / (1 - again + on) if on else 1.0
    committed = [
        1 + sum(expected_accepted(alpha, n) for n in lengths if n) / len(lengths)
        for lengths in (after_draft, after_hit)
    ]
    tokens = share * committed[0] + (1 - share) * committed[1]
    return c * tokens / (max(branching, c) + share * drafted)


def best_gamma(speedup: Callable[[int], float], most: int = MOST_GAMMA) -> int:
    """The γ of most gain, the shortest of equals (for SpS: Leviathan et al. 2023, §3.5).

    Args:
        speedup: by γ, as in ``best_gamma(lambda gamma: sps_speedup(0.8, gamma, c=10))``.
        most: the longest to try.
    """
    _check(most=most)
    return max(range(1, most + 1), key=speedup)


def speedup_limit(alpha: float, c: float) -> float:
    """What no chain of draft tokens exceeds, however it is drafted, verified and overlapped.

    A verification, one at a time, commits ``1 / (1 − α)`` tokens at most, even of an endless chain;
    and text does not appear faster than the draft can write it, unless the target writes faster.
    """
    _check(alpha=alpha, c=c)
    fastest = max(1.0, c)
    return fastest if alpha == 1 else min(fastest, 1 / (1 - alpha))


def _check(**values: float) -> None:
    """Refuse what is out of its range."""
    for name, value in values.items():
        if name in ("alpha", "hit"):
            valid, expected = 0 <= value <= 1, "between 0 and 1"
        elif name in ("c", "t"):
            valid, expected = 0 < value < float("inf"), "above 0 and finite"
        elif name in ("branch_cost", "drafted", "branching"):
            valid, expected = 0 <= value < float("inf"), "0 or more and finite"
        else:
            valid, expected = isinstance(value, int) and value >= 1, "1 or more, and whole"
        if not valid:
            raise InputError(f"{name} must be {expected}, not {value!r}")
