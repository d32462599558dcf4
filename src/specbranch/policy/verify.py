"""The acceptance rules: what the target makes of a chain of draft tokens (docs/exactness.md).

Both take positions left to right. The first draft token that fails ends the chain, and the target's
own token follows what was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbranch.sampling.rng import Stream
from specbranch.sampling.samplers import Sampler


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
    positions = range(position, position + len(chain) + 1)
    chosen = sampler.tokens(log_p, positions, Stream.TARGET)
    for i, drafted in enumerate(chain):
        if chosen[i] != drafted:
            return i, chosen[i]
    return len(chain), chosen[len(chain)]


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
            rest = residual(log_p[i], log_q[i])
            return i, _draw(sampler, rest, position + i)
    return len(chain), _draw(sampler, log_p[len(chain)], position + len(chain))


def _draw(sampler: Sampler, log_p: Tensor, position: int) -> int:
    """The target's token from log-probabilities ``[vocabulary]``."""
    return sampler.tokens(log_p[None], [position], Stream.TARGET)[0]
