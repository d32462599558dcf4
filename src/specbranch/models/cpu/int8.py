"""Linear layers with weights and activations of 8 bits, for CPUs that multiply those (VNNI).

A weight is int8 with a scale for each output channel, an activation row uint8 around 128 with a
scale of its own, found as it comes (*dynamic* quantization, W8A8). Their products are summed in
integers, which do not round: a row gives the same, bit for bit, whatever rows are run with it and
on however many threads. But it is not what the checkpoint's own weights give.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

LARGEST = 127
ZERO = 128  # the uint8 that stands for 0: oneDNN is fast for unsigned activations alone


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
    """A linear layer in int8, in oneDNN's layout; its weight cannot be read any more.

    Args:
        linear: on the CPU.
        layer: its number in the model.
    """

    def __init__(self, linear: nn.Linear, layer: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.layer = layer
        weight, scale = quantized(linear.weight.detach().float())
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        # In a tuple, where `torch.export` does not try to look into it.
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
