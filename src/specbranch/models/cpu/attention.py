"""Attention over the slots that a token sees, and no others, on a CPU in float32.

`scaled_dot_product_attention` copies keys and values for every head of queries, computes what
masks hide, and rounds by the number of queries. The operator here does none of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SEEN_ATTENTION = "seen_slots"
MOST_ROWS = 64  # longer forwards are prompts, for which the library's tiles are faster
HEAD_STEP = 16  # of attention.h


def can_attend(model: PreTrainedModel) -> bool:
    """Whether the operator computes the model's attention."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config._attn_implementation == "sdpa" and size % HEAD_STEP == 0


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As `transformers`' sdpa attention; query is ``[1, heads, n, head_dim]``."""
    fits = mask is not None and mask.dtype == torch.bool and query.shape[0] == 1
    if not fits or not (torch.compiler.is_exporting() or query.shape[2] <= MOST_ROWS):
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return torch.ops.specbranch.attend(query, key, value, mask, scale), None


AttentionInterface.register(SEEN_ATTENTION, _attend)
AttentionMaskInterface.register(SEEN_ATTENTION, sdpa_mask)
