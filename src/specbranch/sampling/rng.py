"""Counter-based noise: a pure function of seed, position, stream and vocabulary index.

The generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
generators"): its finalizer, applied to a counter. It is defined here and not by a library, so that
the same seed gives the same text with every version of `torch` and `numpy`. A change of any number
that it gives is a new `NOISE_VERSION`.

Noise is made on the CPU and moved, so that it is the same for models on every device.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

NOISE_VERSION = 1

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_BITS = 23  # of a uniform number: float32 holds k + 0.5 exactly, so that it is below 1


class Stream(IntEnum):
    """Independent draws at one position.

    The coupled rule draws everything from `TARGET`, which is what couples draft and target.
    """

    TARGET = 0
    DRAFT = 1
    ACCEPT = 2


def _mix(x: int) -> int:
    """SplitMix64's finalizer on a Python integer of 64 bits."""
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def _key(seed: int, position: int, stream: Stream) -> int:
    """Start of the counter that (seed, position, stream) owns."""
    key = 0
    for word in (NOISE_VERSION, seed, position, int(stream)):
        key = _mix((key + _GOLDEN + word) & _MASK)
    return key


@lru_cache(maxsize=8)
def _counters(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The counter's steps, 1 to `count`."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)


def random_bits(
    seed: int, position: int, stream: Stream, count: int
) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """`count` random integers of 64 bits. Of `numpy` it needs integer arithmetic alone."""
    x = _counters(count) + np.uint64(_key(seed, position, stream))
    x ^= x >> np.uint64(30)
    x *= np.uint64(_MIX_1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MIX_2)
    x ^= x >> np.uint64(31)
    return x


@lru_cache(maxsize=512)
def gumbel_noise(
    seed: int,
    position: int,
    stream: Stream,
    vocabulary: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """Standard Gumbel noise of one position, float32 ``[vocabulary]``; not to be written to.

    Args:
        seed: 0 or more, below 2⁶⁴.
        position: of the token in the text.
        stream: which of the position's draws.
        vocabulary: number of tokens.
        device: where the noise is wanted.
    """
    bits = random_bits(seed, position, stream, vocabulary) >> np.uint64(64 - _BITS)
    share = torch.from_numpy(bits.astype(np.float32)).add_(0.5).mul_(2.0**-_BITS)
    return share.log_().neg_().log_().neg_().to(device)


def uniform(seed: int, position: int, stream: Stream) -> float:
    """A random number in (0, 1)."""
    return ((_mix((_key(seed, position, stream) + _GOLDEN) & _MASK) >> 11) + 0.5) * 2.0**-53
