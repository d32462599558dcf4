"""The acceptance rules: what the target makes of a chain of draft tokens (DESIGN §5).

Both read like the papers: positions are taken left to right, the first that fails ends the chain,
and the target's own token follows what was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbranch.sampling.samplers import TARGET, Sampler


def verify_matching(
    chain: Sequence[int], log_p: Tensor, sampler: Sampler, position: int
) -> tuple[int, int]:
    """Accept draft tokens as long as they are what the target would have chosen itself.

    The rule for greedy decoding, and for `coupled` sampling, where the draft proposed by the same
    noise as the target chooses by.

    Args:
        chain: n draft tokens.
        log_p: the target's warped log-probabilities, float32 ``[n + 1, vocabulary]``; row i is for
            the place of ``chain[i]``, the last for the branch point.
        position: place of ``chain[0]`` in the text.

    Returns:
        How many tokens are accepted, and the target's token after them.
    """
    for i, drafted in enumerate(chain):
        token = sampler.token(log_p[i], position + i, TARGET)
        if token != drafted:
            return i, token
    return len(chain), sampler.token(log_p[len(chain)], position + len(chain), TARGET)


def residual(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``log norm(max(0, p − q))``, float32 ``[vocabulary]`` (Leviathan et al. 2023, §2.3)."""
    rest = (log_p.exp() - log_q.exp()).clamp_min(0)
    total = rest.sum()
    # p = q up to rounding: a rejection has then probability 0 up to rounding, and p is the limit.
    return (rest / total).log() if total > 0 else log_p


def verify_rejection(
    chain: Sequence[int], log_p: Tensor, log_q: Tensor, sampler: Sampler, position: int
) -> tuple[int, int]:
    """Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2).

    Args:
        chain: n draft tokens, each sampled from its row of `log_q`.
        log_p: as in `verify_matching`.
        log_q: the draft's warped log-probabilities, float32 ``[n, vocabulary]``.
        position: place of ``chain[0]`` in the text.

    Returns:
        How many tokens are accepted, and the target's token after them.
    """
    for i, drafted in enumerate(chain):
        ratio = torch.exp(log_p[i, drafted] - log_q[i, drafted]).item()
        if not sampler.accepts(min(1.0, ratio), position + i):
            return i, sampler.token(residual(log_p[i], log_q[i]), position + i, TARGET)
    return len(chain), sampler.token(log_p[len(chain)], position + len(chain), TARGET)
