"""Weights laid out once for faster kernels: FBGEMM's where float16 holds them, or else oneDNN's.

Or in int8, if that is asked for. All are batch-invariant on the CPUs they were tried on; MKL's,
which `torch` takes by itself and which lay a weight out again at every forward, are not below 4
rows.
"""

from __future__ import annotations

import itertools
import platform
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from specbranch.hardware import has_native_bfloat16
from specbranch.models.cpu.half import HalfLinear, scaled
from specbranch.models.cpu.int8 import Int8Linear

LEAST_ROWS = 4  # below, `scaled_dot_product_attention` takes other kernels
ATTENTION = "sdpa_least_rows"


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's layout; its weight cannot be read any more.

    Args:
        linear: on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def pack(model: PreTrainedModel, verifies: bool = True, int8: bool = False) -> None:
    """Replace the model's linear layers.

    Args:
        int8: quantize them, on a CPU that `int8.obstacle` has none about.
        verifies: the model is a target, whose logits are to be the same however many tokens are run
            with them: its attention runs at least 4 rows.

    Without effect where there are no kernels for it: on a GPU, beside x86, in float16.
    """
    dtypes = {torch.float32}
    if has_native_bfloat16(torch.device("cpu")):
        dtypes.add(torch.bfloat16)
    devices = {parameter.device.type for parameter in model.parameters()}
    if (
        devices != {"cpu"}
        or model.dtype not in dtypes
        or platform.machine() not in ("x86_64", "AMD64")
        or not torch.backends.mkldnn.is_available()
    ):
        return
    pack_layers(model, int8)
    if verifies and model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)


def pack_layers(module: nn.Module, int8: bool = False) -> None:
    """Replace a module's linear layers, as `pack` does, where there are kernels for it."""
    numbers = itertools.count()
    for parent in [*module.modules()]:
        for name, child in [*parent.named_children()]:
            if type(child) is not nn.Linear:  # a subclass may compute something else
                continue
            if int8:
                setattr(parent, name, Int8Linear(child, next(numbers)))
            elif (weight := scaled(child.weight)) is not None:
                setattr(parent, name, HalfLinear(child, weight, next(numbers)))
            else:
                setattr(parent, name, PackedLinear(child))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`transformers`' sdpa attention; query is ``[batch, heads, rows, head_dim]``."""
    rows = query.shape[2]
    lacking = LEAST_ROWS - rows
    if lacking > 0 and mask is not None:
        query = nn.functional.pad(query, (0, 0, 0, lacking))
        mask = torch.cat([mask, mask[:, :, -1:].expand(-1, -1, lacking, -1)], 2)
    out, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
    return out[:, :rows], weights


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
