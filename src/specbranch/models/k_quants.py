"""K-quants of GGUF files as ordinary blocks.

A superblock of 256 weights has a scale in float16, and 8 or 16 blocks with a small whole number
each, which multiplies it. The product is exact in float32, so that no bit of a weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor


def _q4_k(stored: Tensor) -> Tensor:
    scales, offsets = _scales(stored[..., :16])
    numbers = _halves(stored[..., 16:144].unflatten(-1, (4, 32)))
    return torch.cat([_bytes(scales), _bytes(offsets), _nibbles(numbers)], -1)


def _q5_k(stored: Tensor) -> Tensor:
    scales, offsets = _scales(stored[..., :16])
    bits = stored[..., 16:48, None] >> torch.arange(8, dtype=torch.uint8) & 1  # [32, blocks]
    words = (bits.transpose(-1, -2).long() << torch.arange(32)).sum(-1)
    fifth = _bytes(words.to(torch.uint32))
    numbers = _halves(stored[..., 48:176].unflatten(-1, (4, 32)))
    return torch.cat([_bytes(scales), _bytes(offsets), fifth, _nibbles(numbers)], -1)


def _q6_k(stored: Tensor) -> Tensor:
    low, high, small, scale = stored.split([128, 64, 16, 2], -1)
    four = _halves(low.unflatten(-1, (2, 64)), 64).flatten(-2)  # [256]
    two = high.unflatten(-1, (2, 1, 32)) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    numbers = (four | (two & 3).flatten(-3) << 4).view(torch.int8) - 32
    scales = _halved(scale) * small.view(torch.int8).float()
    blocks = numbers.unflatten(-1, (16, 16)).view(torch.uint8)
    return torch.cat([_bytes(scales), blocks], -1)


def _scales(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets of the 8 blocks of a superblock: 6 bits each, times float16."""
    scale, least = _halved(stored[..., :2]), _halved(stored[..., 2:4])
    first, second, third = stored[..., 4:16].split(4, -1)
    small = torch.cat([first & 63, third & 15 | first >> 2 & 48], -1)
    offset = torch.cat([second & 63, third >> 4 | second >> 2 & 48], -1)
    return scale * small.float(), -(least * offset.float())


def _halved(stored: Tensor) -> Tensor:
    """Two bytes as a number."""
    return stored.contiguous().view(torch.float16).float()


def _halves(stored: Tensor, size: int = 32) -> Tensor:
    """Lower halves of bytes ``[…, n, size]``, then upper ones: ``[…, 2n, size]``."""
    return torch.stack([stored & 15, stored >> 4], -2).flatten(-3, -2)


def _nibbles(numbers: Tensor) -> Tensor:
    """Numbers ``[…, 32]`` of 4 bits in 16 bytes, whose halves are the inputs n and n + 16."""
    return numbers[..., :16] | numbers[..., 16:] << 4


def _bytes(values: Tensor) -> Tensor:
    """Elements of 4 bytes ``[…]`` as ``[…, 4]``."""
    return values[..., None].contiguous().view(torch.uint8)


_REGROUPED: Mapping[str, tuple[int, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {"Q4_K": (144, _q4_k), "Q5_K": (176, _q5_k), "Q6_K": (210, _q6_k)}
)


def regrouped(stored: Tensor, kind: str) -> Tensor:
    """Blocks with a scale of their own, uint8 ``[rows, blocks, bytes]``, of a K-quant's rows.

    Args:
        stored: uint8 ``[rows, bytes]``.
        kind: its name; of other kinds the bytes stay as they are.
    """
    if kind not in _REGROUPED:
        return stored
    size, regroup = _REGROUPED[kind]
    return regroup(stored.unflatten(-1, (-1, size))).flatten(1, 2)
