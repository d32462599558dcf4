"""Which architectures a cache that rewinds to any earlier token can serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from specbranch.errors import UnsupportedModelError

# The configuration entry with the reach, in tokens, of each kind of layer that may be bounded.
_REACH = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def check_cache(config: PreTrainedConfig, name: str) -> None:
    """Refuse models whose cached keys and values would not be those of a fresh forward.

    A window that holds the whole context is no window: no text can leave it.

    Args:
        config: of the model; nothing but the configuration is looked at.
        name: of the model, for the message.

    Raises:
        UnsupportedModelError: sliding windows, local or chunked attention, recurrent states,
            encoders, ALiBi biases, or rotary frequencies that depend on a text's length.
    """
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if reason := _no_rewind(config, text, context):
        raise UnsupportedModelError(
            f"{name} ({config.model_type}) cannot be used: {reason}, and its cache cannot "
            "rewind; SpecBranch needs full attention in every layer"
        )
    if getattr(text, "alibi", False):
        raise UnsupportedModelError(
            f"{name} ({config.model_type}) cannot be used: its attention has biases by distance "
            "(ALiBi), which do not follow the positions of a tree; SpecBranch needs rotary or "
            "learned positions"
        )
    for rope in _rope_parameters(text):
        border = _rope_border(rope, text)
        if border is not None and _ends_within(border, context):
            raise UnsupportedModelError(
                f"{name} ({config.model_type}) cannot be used: its rotary frequencies "
                f"({rope['rope_type']}) change for texts of more than {border} tokens, and its "
                "cache keeps keys of the old ones; SpecBranch needs the same ones at every length"
            )


def borders(config: PreTrainedConfig) -> list[int]:
    """Text lengths, in tokens and ascending, at which the configuration may change the attention.

    They are the sizes of windows and chunks, and the lengths for which rotary frequencies were
    made, wherever a text can be longer. Entries that mean something else do no harm: a trial
    around them passes.
    """
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or 0
    found: set[int] = set()
    for entries in (text.to_dict(), *_rope_parameters(text)):
        for key, value in entries.items():
            named = "window" in key or "chunk" in key or key == "original_max_position_embeddings"
            if named and type(value) in (int, float) and 1 < value < context:
                found.add(int(value))
    return sorted(found)


def _no_rewind(config: PreTrainedConfig, text: PreTrainedConfig, context: int | None) -> str | None:
    """Why the cache cannot rewind; None if it can."""
    layers = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    # Some configurations keep the size of a window that they do not use.
    windowed = getattr(text, "use_sliding_window", True) and _ends_within(window, context)
    kinds = {
        kind
        for kind in layers or []
        if kind != "full_attention"
        and (kind not in _REACH or _ends_within(getattr(text, _REACH[kind], 0), context))
    }
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if kinds:
        return f"it has {', '.join(sorted(kinds))} layers"
    if windowed and not layers:
        return f"it attends in a sliding window of {window} tokens"
    if "local" in (getattr(text, "attention_layers", None) or []) and _ends_within(
        getattr(text, "window_size", 0), context
    ):
        return "it has local attention layers"
    if context is None:
        return "its configuration names no context length (a recurrent model?)"
    return None


def _ends_within(reach: int | None, context: int | None) -> bool:
    """Whether a layer that attends to the last `reach` tokens misses some token of a text."""
    return reach is not None and (context is None or reach < context)


def _rope_parameters(text: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The model's rotary parameters, which some models have for each kind of layer."""
    parameters = getattr(text, "rope_parameters", None) or {}
    for rope in (parameters, *parameters.values()):
        if isinstance(rope, Mapping) and "rope_type" in rope:
            yield rope


def _rope_border(rope: Mapping[str, Any], text: PreTrainedConfig) -> int | None:
    """The longest text, in tokens, with a short text's frequencies; None if all have the same.

    As `transformers.modeling_rope_utils.dynamic_rope_update` has it: for every position of a
    forward it picks them by the largest one.
    """
    if rope["rope_type"] == "longrope":
        border = rope.get("original_max_position_embeddings")
        return border or getattr(text, "original_max_position_embeddings", None)
    if "dynamic" in rope["rope_type"]:
        return text.max_position_embeddings
    return None
