"""Attention windows: layers in which a token sees only some of the tokens before it.

The cache keeps all keys and values, so a window is a mask. It narrows the mask of full attention,
in which a token sees its own path and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig

FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
# The configuration entry with the size, in tokens, of each kind of window.
SIZES = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}


@dataclass(frozen=True)
class AttentionWindows:
    """The windows of a model's layers.

    Attributes:
        kinds: the type of every layer, of those that `transformers` names.
        sizes: tokens of a window, for each type that has one.
    """

    kinds: tuple[str, ...]
    sizes: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The types of layers whose masks differ; one for all layers if none do."""
        if len({kind if kind in self.sizes else FULL for kind in self.kinds}) == 1:
            return self.kinds[:1]
        return tuple(dict.fromkeys(self.kinds))

    def masks(self, mask: Tensor) -> list[Tensor]:
        """A mask for each of `names`, from that of full attention; see `narrowed`."""
        return [self.narrowed(mask, name) for name in self.names]

    def argument(self, masks: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        """What `transformers`' models take as their attention mask: one, or one for each type."""
        return masks[0] if len(masks) == 1 else dict(zip(self.names, masks, strict=True))

    def of_layer(self, masks: Sequence[Tensor], layer: int) -> Tensor:
        """The one of `masks` that a layer takes."""
        return masks[0] if len(masks) == 1 else masks[self.names.index(self.kinds[layer])]

    def narrowed(self, mask: Tensor, kind: str) -> Tensor:
        """A mask for layers of type `kind`.

        A row of `mask` shows a path: the slots that it marks hold the tokens of positions 0, 1, 2
        and so on, in this order, and the last of them is the row's own. So positions follow from
        the mask alone, wherever in the cache a branch has its slots.

        Args:
            mask: bool ``[…, n, extent]``, True where a token sees a slot.
        """
        size = self.sizes.get(kind)
        if size is None:
            return mask
        position = mask.cumsum(-1, dtype=torch.int32) - 1
        own = position[..., -1:]
        if kind == CHUNKED:
            return mask & (position // size == own // size)
        return mask & (own - position < size)

    def __str__(self) -> str:
        """What they are, for people; empty if there are none."""
        return ", ".join(
            f"{'chunks' if kind == CHUNKED else 'a window'} of {size} tokens in "
            f"{self.kinds.count(kind)} of {len(self.kinds)} layers"
            for kind, size in self.sizes.items()
        )


def windows_of(config: PreTrainedConfig, context: int | None) -> AttentionWindows:
    """The windows of a model with this configuration.

    A window that holds the whole context is none: no text can leave it.

    Args:
        config: of the model.
        context: most tokens of a text; None if it names none.
    """
    text = config.get_text_config()
    kinds = _kinds(text)
    sizes = {}
    for kind, entry in SIZES.items():
        size = getattr(text, entry, None)
        if kind in kinds and size and (context is None or size < context):
            sizes[kind] = size
    return AttentionWindows(tuple(kinds), sizes)


def _kinds(text: PreTrainedConfig) -> Sequence[str]:
    """The type of every layer; those without an entry attend alike, in a window or fully."""
    if layers := getattr(text, "layer_types", None):
        return layers
    # Some configurations keep the size of a window that they do not use.
    used = getattr(text, "use_sliding_window", True)
    windowed = used and getattr(text, SIZES[SLIDING], None)
    return [SLIDING if windowed else FULL] * getattr(text, "num_hidden_layers", 1)


@contextmanager
def resized(
    config: PreTrainedConfig, windows: AttentionWindows, size: int
) -> Iterator[AttentionWindows]:
    """Have a model's windows hold `size` tokens for a while, so that a short text leaves them.

    Args:
        config: of the model; its entries are restored in the end.
        windows: of the model.
        size: in tokens.
    """
    text = config.get_text_config()
    try:
        for kind in windows.sizes:
            setattr(text, SIZES[kind], size)
        yield replace(windows, sizes=dict.fromkeys(windows.sizes, size))
    finally:
        for kind, before in windows.sizes.items():
            setattr(text, SIZES[kind], before)
