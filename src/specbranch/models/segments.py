"""One forward over several sequences, each with a key/value cache of its own.

The tokens of all sequences go through the linear layers together, as one row. Attention runs for
each sequence apart, over its own cache and with its own mask: no padding, and no copy of a prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from specbranch.models.cpu.attention import SEEN_ATTENTION
from specbranch.models.cpu.prepacking import ATTENTION as LEAST_ROWS_ATTENTION
from specbranch.models.kv_cache import StaticKVCache
from specbranch.models.windows import AttentionWindows

ATTENTION = "sdpa_segments"
# Attention that this one computes the same as.
REPLACED = ("sdpa", LEAST_ROWS_ATTENTION, SEEN_ATTENTION)


@dataclass(frozen=True)
class Segment:
    """The part of one sequence in a forward.

    Attributes:
        cache: of the sequence.
        tokens: n ids.
        slots: of the cache, to write their keys and values to.
        positions: in the text.
        mask: bool ``[n, extent]``, True where a token sees a slot, but for the model's windows.
    """

    cache: StaticKVCache
    tokens: list[int]
    slots: list[int]
    positions: list[int]
    mask: Tensor


class _SegmentedLayer(CacheLayerMixin):
    """Writes each segment's keys and values to the same layer of its own cache."""

    def __init__(self, segments: Sequence[Segment], index: int) -> None:
        super().__init__()
        self._segments = segments
        self._index = index
        self.seen: list[tuple[Tensor, Tensor]] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The caches of the segments allocate themselves."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        counts = [len(segment.tokens) for segment in self._segments]
        rows = zip(
            self._segments,
            key_states.split(counts, dim=2),
            value_states.split(counts, dim=2),
            strict=True,
        )
        self.seen = [
            segment.cache.layers[self._index].update(keys, values) for segment, keys, values in rows
        ]
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class SegmentedCache(Cache):
    """A `transformers` cache over the caches of several sequences, for one forward."""

    def __init__(self, segments: Sequence[Segment], windows: AttentionWindows) -> None:
        self.segments = segments
        self.windows = windows
        self.masks = [windows.masks(segment.mask[None, None]) for segment in segments]
        layers = len(segments[0].cache.layers)
        super().__init__(layers=[_SegmentedLayer(segments, index) for index in range(layers)])


_running: ContextVar[SegmentedCache] = ContextVar("segmented cache of the running forward")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`transformers`' sdpa attention for each segment; query is ``[1, heads, T, head_dim]``."""
    cache = _running.get()
    layer_index: Any = module.layer_idx
    layer = cache.layers[layer_index]
    assert isinstance(layer, _SegmentedLayer)
    counts = [len(segment.tokens) for segment in cache.segments]
    masks = [cache.windows.of_layer(masks, layer_index) for masks in cache.masks]
    rows = zip(masks, query.split(counts, dim=2), layer.seen, strict=True)
    found = [
        sdpa_attention_forward(module, queries, keys, values, mask.to(query.device), **options)[0]
        for mask, queries, (keys, values) in rows
    ]
    return torch.cat(found, dim=1), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def can_run_segments(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be replaced by that of segments.

    It cannot where a layer attends over the keys of another one (Gemma 3n, Gemma 4).
    """
    config = model.config.get_text_config()
    shares = getattr(config, "num_kv_shared_layers", 0)
    return config._attn_implementation in REPLACED and not shares


@contextmanager
def _segmented(model: PreTrainedModel, cache: SegmentedCache) -> Iterator[None]:
    """Have the model attend by segments for a while."""
    config = model.config.get_text_config()
    before, token = config._attn_implementation, _running.set(cache)
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
        _running.reset(token)


@torch.inference_mode()
def run_segments(
    model: PreTrainedModel, segments: Sequence[Segment], windows: AttentionWindows
) -> list[Tensor]:
    """One forward over the tokens of all segments.

    Args:
        model: see `can_run_segments`.
        segments: of different sequences.
        windows: of the model's layers.

    Returns:
        Logits, float32 ``[n, vocabulary]``, for each segment.
    """
    for segment in segments:
        segment.cache.slots = torch.tensor(segment.slots, device=model.device)
        segment.cache.extent = segment.mask.shape[1]
    cache = SegmentedCache(segments, windows)
    tokens = [token for segment in segments for token in segment.tokens]
    positions = [position for segment in segments for position in segment.positions]
    count = len(tokens)
    with _segmented(model, cache):
        out = model(
            input_ids=torch.tensor([tokens], device=model.device),
            # Each segment has a mask of its own; one that is given is not made anew.
            attention_mask=torch.ones(1, 1, count, count, dtype=torch.bool, device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
    return list(out.logits[0].float().split([len(segment.tokens) for segment in segments]))
