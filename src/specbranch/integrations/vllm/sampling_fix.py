"""Sampling beside speculation on vLLM's CPU build, which loses the requests' parameters.

https://github.com/vllm-project/vllm/issues/55005: where rows of the batch are expanded to the
tokens under verification, temperature, top-k and top-p are lost, with any speculative method. And
`top_k` without `top_p` ends the engine in a step without drafts. Both are tried when a worker
starts, and replaced only if they fail: a version that has them mended is left as it is.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("specbranch")


def mend_sampling() -> list[str]:
    """Replace what fails in this process; returns what was replaced."""
    try:
        from vllm.platforms import current_platform
        from vllm.v1.sample import rejection_sampler

        if not current_platform.is_cpu():
            return []
    except ImportError:  # no vLLM, or one with other modules
        return []
    return mend(rejection_sampler)


def mend(module: Any) -> list[str]:
    """Replace what fails in a module with vLLM's `rejection_sampler` functions.

    Returns:
        Names of the functions that were replaced.
    """
    replaced = []
    expanding = getattr(module, "expand_batch_to_tokens", None)
    if expanding is not None and not expands(expanding):
        module.expand_batch_to_tokens = expand
        replaced.append("expand_batch_to_tokens")
    warping = getattr(module, "apply_top_k_top_p", None)
    if warping is not None and not takes_no_rows(warping):
        module.apply_top_k_top_p = skipping_no_rows(warping)
        replaced.append("apply_top_k_top_p")
    if replaced:
        logger.info("specbranch: replaced in vLLM's verification: %s", ", ".join(replaced))
    return replaced


def expands(function: Any) -> bool:
    """Whether vLLM's `expand_batch_to_tokens` works; True for one that is called otherwise."""
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    given = torch.tensor([0.5, 7.0, 0.0])
    wanted = torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0])
    try:
        return torch.equal(function(given, ends, 5, replace_from=0, replace_to=1), wanted)
    except TypeError:
        return True


def takes_no_rows(function: Any) -> bool:
    """Whether `apply_top_k_top_p` takes logits without a row."""
    try:
        function(torch.empty(0, 4), torch.empty(0, dtype=torch.int32), None)
    except (RuntimeError, IndexError):
        return False
    except TypeError:
        return True
    return True


def expand(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Each request's value for each of its tokens.

    Args:
        x: ``[requests]``.
        cu_num_tokens: tokens of the requests up to each one, ``[requests]``.
        num_tokens: of all together.
        replace_from, replace_to: a value that is replaced, and by what.

    Returns:
        ``[num_tokens]``, in the dtype of `x`.
    """
    values = x.masked_fill(x == replace_from, replace_to)
    counts = torch.diff(cu_num_tokens.long(), prepend=cu_num_tokens.new_zeros(1).long())
    return values.repeat_interleave(counts, output_size=num_tokens)


def skipping_no_rows(inner: Any) -> Any:
    """The function, which is not called without rows."""

    def apply(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = inner(logits, *args, **kwargs) if logits.shape[0] else logits
        return found

    return apply
