"""Weight prepacking: weights are laid out once for faster kernels.

The kernels are our own for the blocks of a GGUF file, FBGEMM's where float16 holds the weights
exactly, or else oneDNN's, or int8 on request. All are batch-invariant on the CPUs on which they
were tried. MKL's, the default of `torch`, lay a weight out again at every forward, and are not
batch-invariant below 4 rows.
"""

from __future__ import annotations

import itertools
import logging
import platform
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from specbranch.cache_folder import cache_folder, prepare_folder
from specbranch.hardware import has_native_bfloat16
from specbranch.models.cpu.attention import SEEN_ATTENTION, can_attend
from specbranch.models.cpu.blocks import has_blocks, only_blocks, pack_blocks
from specbranch.models.cpu.custom_ops import compiler, load_operators
from specbranch.models.cpu.half import HalfLinear, scaled
from specbranch.models.cpu.int8 import Int8Linear

logger = logging.getLogger("specbranch")

LEAST_ROWS = 4  # below, `scaled_dot_product_attention` takes other kernels
ATTENTION = "sdpa_least_rows"


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's layout, whose weight cannot be read back.

    Args:
        linear: a layer on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")


def pack(model: PreTrainedModel, verifies: bool = True, int8: bool = False) -> None:
    """Replace the model's linear layers by prepacked ones, and what is in blocks by its blocks.

    It has no effect where there are no kernels: on GPUs, and, but for blocks, on CPUs other than
    x86, and in float16.

    Args:
        model: changed in place.
        verifies: the model is a target, whose logits must not depend on the query length: its
            attention then runs at least 4 rows.
        int8: quantize the layers; `int8.obstacle` must be None.
    """
    if has_blocks(model) and not int8:
        _pack_blocks(model)
        if only_blocks(model) and can_attend(model):
            model.set_attn_implementation(SEEN_ATTENTION)
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


def _pack_blocks(model: PreTrainedModel) -> None:
    if (found := compiler()) is None:
        logger.info("weights are dequantized: there is no C++ compiler: install g++ or clang++")
        return
    try:
        prepare_folder(cache_folder())
        load_operators(cache_folder(), found)
    except (RuntimeError, OSError) as error:  # the dequantized weights are there
        logger.warning("weights are dequantized, and slower: %s", error)
        return
    pack_blocks(model)


def pack_layers(module: nn.Module, int8: bool = False) -> None:
    """Replace a module's linear layers, as `pack` does, where there are kernels for it."""
    numbers = itertools.count()
    for parent in [*module.modules()]:
        for name, child in [*parent.named_children()]:
            if type(child) is not nn.Linear:  # a subclass may compute something else
                continue
            packed: nn.Module
            if int8:
                packed = Int8Linear(child, next(numbers))
            elif (weight := scaled(child.weight)) is not None:
                packed = HalfLinear(child, weight, next(numbers))
            else:
                packed = PackedLinear(child)
            # Some models ask for its dtype; nothing can be computed with it.
            packed.weight = child.weight.detach().new_empty(0)
            setattr(parent, name, packed)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The sdpa attention of `transformers` over at least 4 rows.

    Args:
        query: ``[batch, heads, rows, head_dim]``.
    """
    rows = query.shape[2]
    lacking = LEAST_ROWS - rows
    if lacking > 0 and mask is not None:
        query = nn.functional.pad(query, (0, 0, 0, lacking))
        mask = torch.cat([mask, mask[:, :, -1:].expand(-1, -1, lacking, -1)], 2)
    out, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
    return out[:, :rows], weights


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
