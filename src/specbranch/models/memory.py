"""How much of each device a sharded model may fill."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from specbranch.errors import InputError

USED = 0.9  # of the free memory; the rest is for caches and activations
MARGIN = 1.2  # a model's own caches and activations, relative to its weights


def room_beside(
    free: Mapping[int | str, int], reserved: Mapping[int | str, int]
) -> dict[int | str, int]:
    """Bytes of each device for a sharded model (`max_memory` of `transformers`).

    Args:
        free: bytes by device: a GPU's number, or ``cpu``.
        reserved: bytes of the weights of other models that will be loaded there. Each gets 20 %
            more, for its caches.
    """
    return {
        device: max(0, int(USED * size - MARGIN * reserved.get(device, 0)))
        for device, size in free.items()
    }


def free_memory() -> dict[int | str, int]:
    """Free bytes by device, as `accelerate` has them.

    Raises:
        InputError: `accelerate`, which shards models, is not installed.
    """
    try:
        accelerate = import_module("accelerate.utils")
    except ImportError:
        raise InputError("a sharded model needs accelerate: pip install accelerate") from None
    return dict(accelerate.get_max_memory())


def weights_size(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of a model's weights. Nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.num_parameters() * dtype.itemsize
