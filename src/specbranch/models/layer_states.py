"""The cache of a model with recurrent or convolutional layers: states beside keys and values.

A state says what a layer has read so far, and cannot be taken back. So copies are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, LinearAttentionLayer

from specbranch.models.kv_cache import StaticKVCache, StaticKVLayer

# Types of layers, as `transformers` names them.
STATES = ("linear_attention", "conv")
BESIDE_ATTENTION = "hybrid"


def count_states(config: PreTrainedConfig) -> int:
    """How many layers of such a model have states."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    return sum(kind in (*STATES, BESIDE_ATTENTION) for kind in kinds)


def has_states(config: PreTrainedConfig) -> bool:
    """Whether some do."""
    return count_states(config) > 0


class HybridLayer(LinearAttentionLayer, StaticKVLayer):
    """A layer that has a state, and keys and values."""

    def __init__(self, kv_cache: StaticKVCache) -> None:
        StaticKVLayer.__init__(self, kv_cache)
        LinearAttentionLayer.__init__(self)

    def lazy_initialization(self, *args: Tensor, **kwargs: Any) -> None:
        # Keys and values are given by place, states by name.
        kind = StaticKVLayer if args else LinearAttentionLayer
        kind.lazy_initialization(self, *args, **kwargs)


@dataclass(frozen=True)
class Snapshot:
    """The states of all layers after some tokens of one path.

    Attributes:
        convolutional, recurrent: of each layer with states, ``[1, …]``, by index.
    """

    convolutional: list[dict[int, Tensor]]
    recurrent: list[dict[int, Tensor]]


class StatefulCache(StaticKVCache):
    """As `StaticKVCache`, with the states of one path, or of several side by side.

    Args:
        kinds: the type of every layer.
        capacity: slots of keys and values.
    """

    def __init__(self, kinds: Sequence[str], capacity: int) -> None:
        self.capacity = capacity
        self.extent = 0
        self.slots = torch.empty(0, dtype=torch.long)
        Cache.__init__(self, layers=[self._layer(kind) for kind in kinds])

    def _layer(self, kind: str) -> LinearAttentionLayer | StaticKVLayer:
        if kind == BESIDE_ATTENTION:
            return HybridLayer(self)
        return LinearAttentionLayer() if kind in STATES else StaticKVLayer(self)

    @property
    def _stateful(self) -> list[LinearAttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, LinearAttentionLayer)]

    def snapshots(self, count: int) -> list[Snapshot]:
        """A copy of the states of each of `count` paths."""
        layers = self._stateful
        return [
            Snapshot(
                [_rows(layer.conv_states, row) for layer in layers],
                [_rows(layer.recurrent_states, row) for layer in layers],
            )
            for row in range(count)
        ]

    def restore(self, snapshots: Sequence[Snapshot]) -> None:
        """Go on from these states, of a path each; from none, which is an empty path, anew."""
        for index, layer in enumerate(self._stateful):
            LinearAttentionLayer.__init__(layer)
            if not snapshots:
                continue
            for at in snapshots[0].convolutional[index]:
                rows = torch.cat([snapshot.convolutional[index][at] for snapshot in snapshots])
                layer.lazy_initialization(conv_states=rows, state_idx=at)
                layer.conv_states[at].copy_(rows)
                layer.has_previous_state[at] = True
            for at in snapshots[0].recurrent[index]:
                rows = torch.cat([snapshot.recurrent[index][at] for snapshot in snapshots])
                layer.lazy_initialization(recurrent_states=rows, state_idx=at)
                layer.recurrent_states[at].copy_(rows)
                layer.has_previous_state[at] = True


def _rows(states: dict[int, Tensor | None], row: int) -> dict[int, Tensor]:
    return {at: kept[row : row + 1].clone() for at, kept in states.items() if kept is not None}
