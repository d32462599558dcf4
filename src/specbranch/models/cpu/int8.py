"""Linear layers with 8-bit weights and activations (W8A8), for CPUs with VNNI instructions.

A weight is int8 with one scale for each output channel. An activation row is uint8 around 128 with
a scale of its own, computed at run time (*dynamic* quantization). Products are summed in integers,
without rounding, so a row's result is bit-identical whatever rows are run with it and on any number
of threads. It differs from the result of the checkpoint's own weights.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

LARGEST = 127
ZERO = 128  # the uint8 for 0; oneDNN is fast for unsigned activations only


def obstacle(device: torch.device) -> str | None:
    """Why int8 layers cannot run there; None if they can."""
    if device.type != "cpu":
        return f"it is for CPUs, and the model is on {device}"
    if platform.machine() not in ("x86_64", "AMD64"):
        return "it is for x86 CPUs"
    # Without VNNI, sums of two products saturate at 16 bits.
    if not torch.cpu._is_vnni_supported():
        return "this CPU has no VNNI instructions"
    return None


class Int8Linear(nn.Module):
    """A linear layer in int8 and in oneDNN's layout, whose weight cannot be read back.

    Args:
        linear: a layer on the CPU.
        layer: the layer's number in the model.
    """

    def __init__(self, linear: nn.Linear, layer: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.layer = layer
        weight, scale = quantized(linear.weight.detach().float())
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        # In a tuple: `torch.export` would try to trace an attribute.
        packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
        self.packed = (packed, scale[:, 0], zeros)

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantized(x)
        unsigned = (rows + ZERO).to(torch.uint8)
        if torch.compiler.is_exporting():
            y = torch.ops.specbranch.int8_linear(unsigned, self.layer, self.out_features)
        else:
            y = torch.ops.onednn.qlinear_pointwise(
                unsigned, 1.0, ZERO, *self.packed, None, 1.0, 0, torch.float32, "none", [], ""
            )
        y = y * scale
        return y if self.bias is None else y + self.bias


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers up to 127, and each row's scale ``[…, 1]``: x ≈ numbers × scale."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / LARGEST
    return (x / scale).round(), scale
