"""What this machine computes well."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run on units made for it rather than in emulation."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps"


def gains_by_bfloat16(device: torch.device) -> bool:
    """Whether a bfloat16 model decodes faster in bfloat16 than in float32 with packed weights.

    On x86 it takes a CPU with tiles (AMX): with AVX-512's bfloat16 instructions the products of few
    tokens are no faster than FBGEMM's in float32, whose weights have 16 bits, too.
    """
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_amx_tile_supported())
    return has_native_bfloat16(device)
