"""Static key/value cache of one sequence: a forward may write to or see any of its slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class StaticKVLayer(CacheLayerMixin):
    """One layer's keys and values, ``[1, heads, capacity, head_dim]``, allocated at first use."""

    def __init__(self, kv_cache: StaticKVCache) -> None:
        super().__init__()
        self.kv_cache = kv_cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        capacity = self.kv_cache.capacity
        self.keys, self.values = (
            new.new_zeros((1, new.shape[1], capacity, new.shape[-1]))
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens to the current slots; return the slots up to the extent.

        Rows of a batch have one token each, and all of them see the one cache.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        slots = self.kv_cache.slots.to(self.keys.device)
        rows, extent = key_states.shape[0], self.kv_cache.extent
        if rows > 1:
            key_states, value_states = key_states.transpose(0, 2), value_states.transpose(0, 2)
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        seen = self.keys[:, :, :extent], self.values[:, :, :extent]
        return (
            seen
            if rows == 1
            else (seen[0].expand(rows, -1, -1, -1), seen[1].expand(rows, -1, -1, -1))
        )

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy the slots `source` to the slots `destination`, both int64 ``[n]``."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            source, destination = source.to(self.keys.device), destination.to(self.keys.device)
            self.keys.index_copy_(2, destination, self.keys.index_select(2, source))
            self.values.index_copy_(2, destination, self.values.index_select(2, source))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.kv_cache.extent, 0

    def get_seq_length(self) -> int:
        return self.kv_cache.extent

    def get_max_length(self) -> int:
        return self.kv_cache.capacity


class StaticKVCache(Cache):
    """A `transformers` cache over slots. A forward writes `slots` and sees the first `extent`.

    Which of them each new token really sees is the business of the attention mask.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        self.capacity = capacity
        self.extent = 0
        self.slots = torch.empty(0, dtype=torch.long)
        super().__init__(layers=[StaticKVLayer(self) for _ in range(layers)])

    @classmethod
    def of(cls, keys: list[Tensor], values: list[Tensor]) -> StaticKVCache:
        """A kv_cache over storage that is there already: a tensor a layer."""
        made = cls(len(keys), keys[0].shape[2])
        for layer, key, value in zip(made.layers, keys, values, strict=True):
            layer.keys, layer.values, layer.is_initialized = key, value, True
        return made

    @property
    def keys(self) -> list[Tensor]:
        """Of every layer, ``[1, heads, capacity, head_dim]``; once they are allocated."""
        return [layer.keys for layer in self._initialized]

    @property
    def values(self) -> list[Tensor]:
        """As `keys`."""
        return [layer.values for layer in self._initialized]

    @property
    def _initialized(self) -> list[Any]:
        return [x for x in self.layers if isinstance(x, StaticKVLayer) and x.is_initialized]

    @property
    def nbytes(self) -> int:
        """Of all slots' keys and values; 0 before they are allocated."""
        return sum(stored.nbytes for stored in (*self.keys, *self.values))

    def allocate(self, shape: Sequence[tuple[int, int]], dtype: torch.dtype) -> None:
        """Allocate what is not yet, on the CPU: heads and size of a head for every layer.

        The last layers are left out where they attend over the keys of others.
        """
        for layer, (heads, size) in zip(self.layers, shape, strict=False):
            if not layer.is_initialized:
                layer.keys = torch.zeros(1, heads, self.capacity, size, dtype=dtype)
                layer.values = torch.zeros_like(layer.keys)
                layer.is_initialized = True

    def move(self, source: Tensor, destination: Tensor) -> None:
        for layer in self._initialized:
            layer.move(source, destination)
