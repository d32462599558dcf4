"""Linear layers whose float32 weights are stored in float16 without rounding.

Checkpoints are stored in 16 bits. A CPU that does not compute in 16 bits holds them as float32, and
reading them takes most of a short forward's time. FBGEMM multiplies float32 activations with
float16 weights in float32 arithmetic, and so reads half the bytes. Scaled by a power of two, the
weights of a bfloat16 checkpoint are exact in float16.
"""

from __future__ import annotations

import functools
import math
import platform

import torch
from torch import Tensor, nn

TRIED_ROWS = 128  # longer forwards are prompts, which are never divided in another way


class HalfLinear(nn.Module):
    """A linear layer in FBGEMM's layout, whose weight cannot be read back.

    Every row of the product is bit-identical whatever rows are multiplied with it.

    Args:
        linear: a float32 layer on the CPU.
        scaled: its weight and the power of two that multiplied it, as the function `scaled` gives
            them.
        layer: the layer's number in the model.
    """

    def __init__(self, linear: nn.Linear, scaled: tuple[Tensor, float], layer: int) -> None:
        super().__init__()
        weight, scale = scaled
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.layer = layer
        # In a tuple: `torch.export` would try to trace an attribute.
        self.packed = (torch.ops.quantized.linear_prepack_fp16(weight, None),)
        self._inverse = 1 / scale

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # compiled forwards pad by themselves
            y = torch.ops.specbranch.half_linear(x, self.layer, self.out_features)
        elif lacking := lacking_rows(rows := x.numel() // self.in_features):
            padded = nn.functional.pad(x.reshape(rows, self.in_features), (0, 0, 0, lacking))
            y = torch.ops.quantized.linear_dynamic_fp16(padded, *self.packed)[:rows]
            y = y.reshape(*x.shape[:-1], self.out_features)
        else:
            y = torch.ops.quantized.linear_dynamic_fp16(x, *self.packed)
        y = y * self._inverse
        return y if self.bias is None else y + self.bias


def scaled(weight: Tensor) -> tuple[Tensor, float] | None:
    """The weight times a power of two that makes it exact in float16, and the power.

    Returns:
        None where there is no such power, or no FBGEMM.
    """
    if (
        weight.dtype != torch.float32
        or weight.device.type != "cpu"
        or platform.machine() not in ("x86_64", "AMD64")
        or torch.backends.quantized.engine not in ("x86", "fbgemm")
    ):
        return None
    largest = weight.detach().abs().max().item()
    if not 2.0**-100 < largest < 2.0**100:  # the power and its inverse are float32, too
        return None
    scale = 2.0 ** (14 - math.floor(math.log2(largest)))
    times = weight.detach() * scale
    return (times, scale) if torch.equal(times.half().float(), times) else None


def lacking_rows(rows: int) -> int:
    """How many rows to add to a product so that all its kernels sum in the same order.

    The number is found by trial. FBGEMM divides the rows among kernels of one to six rows, and on
    some CPUs those of one and of two rows sum in another order.
    """
    return _lacking().get(rows, 0)


@functools.cache
def _lacking() -> dict[int, int]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator).half().float()
    packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
    row = torch.randn(1, 64, generator=generator)
    products = {
        rows: torch.ops.quantized.linear_dynamic_fp16(row.repeat(rows, 1), packed)
        for rows in range(1, TRIED_ROWS + 9)
    }

    def like(first: Tensor) -> list[int]:
        return [rows for rows, found in products.items() if (found == first).all()]

    usual = max((like(found[:1]) for found in products.values()), key=len)
    return {
        rows: min(other for other in usual if other > rows) - rows
        for rows in range(1, usual[-1])
        if rows not in usual
    }
