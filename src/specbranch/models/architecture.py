"""Which architectures a cache that rewinds to any earlier token can serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from specbranch.errors import UnsupportedModelError
from specbranch.models.layer_states import BESIDE_ATTENTION, STATES
from specbranch.models.windows import FULL, SIZES

UNLIMITED = 1 << 20  # tokens; of a model that knows no positions
_KNOWN = {FULL, *SIZES, *STATES, BESIDE_ATTENTION}


def context_length(text: PreTrainedConfig) -> int | None:
    """Most tokens of a text; None if the configuration names no number, and needs one.

    Recurrent layers alone know no positions, and take a text of any length.

    With YaRN (arXiv 2309.00071) it is the original context times the factor, where that is more
    than `max_position_embeddings`, which some configurations leave at the original context.

    Args:
        text: as `get_text_config` gives it.
    """
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if positions is None and set(STATES).issuperset(getattr(text, "layer_types", None) or [FULL]):
        return UNLIMITED
    for rope in _rope_parameters(text):
        original = rope.get("original_max_position_embeddings")
        if rope["rope_type"] == "yarn" and original and positions:
            positions = max(positions, int(original * rope.get("factor", 1)))
    return positions


def check_cache(config: PreTrainedConfig, name: str) -> None:
    """Refuse models whose cached keys and values would not be those of a fresh forward.

    Args:
        config: of the model; nothing but the configuration is looked at.
        name: of the model, for the message.

    Raises:
        UnsupportedModelError: local or sparse attention, recurrent states, encoders, ALiBi biases,
            or rotary frequencies that depend on a text's length.
    """
    text = config.get_text_config()
    if reason := _obstacle(config, text, context_length(text)):
        raise UnsupportedModelError(f"{name} ({config.model_type}) cannot be used: {reason}")


def borders(config: PreTrainedConfig) -> list[int]:
    """Text lengths, in tokens and ascending, at which the configuration may change the attention.

    They are the sizes of windows and chunks, and the lengths for which rotary frequencies were
    made, wherever a text can be longer. Entries that mean something else do no harm: a trial
    around them passes.
    """
    text = config.get_text_config()
    context = context_length(text) or 0
    found: set[int] = set()
    for entries in (text.to_dict(), *_rope_parameters(text)):
        for key, value in entries.items():
            named = "window" in key or "chunk" in key or key == "original_max_position_embeddings"
            if named and type(value) in (int, float) and 1 < value < context:
                found.add(int(value))
    return sorted(found)


def _obstacle(config: PreTrainedConfig, text: PreTrainedConfig, context: int | None) -> str | None:
    """Why the model cannot be decoded, and what can; None if nothing is known against it."""
    kinds = set(getattr(text, "layer_types", None) or []) - _KNOWN
    if config.is_encoder_decoder:
        return "it is an encoder-decoder; SpecBranch needs a decoder alone"
    if kinds:
        return (
            f"its {', '.join(sorted(kinds))} layers choose what they attend to; SpecBranch needs "
            "full attention, a window or a recurrent state in every layer"
        )
    if "local" in (getattr(text, "attention_layers", None) or []) and _ends_within(
        getattr(text, "window_size", 0), context
    ):
        return (
            "its local attention counts slots of the cache, which do not follow the positions of "
            "a tree; SpecBranch needs windows that are masks"
        )
    if config.model_type == "bloom" or any(
        getattr(part, "alibi", False) for part in (text, getattr(text, "attn_config", None))
    ):
        return (
            "its attention has biases by distance (ALiBi), which do not follow the positions of a "
            "tree; SpecBranch needs rotary or learned positions"
        )
    if config.model_type in ("mamba", "falcon_mamba"):
        return (
            "its layers do not go on from a state with several tokens, so that no draft can be "
            "verified"
        )
    if context is None:
        return "its configuration names no context length (a recurrent model?)"
    for rope in _rope_parameters(text):
        border = _rope_border(rope, text)
        if border is not None and _ends_within(border, context):
            return (
                f"its rotary frequencies ({rope['rope_type']}) change for texts of more than "
                f"{border} tokens, and its cache keeps keys of the old ones; SpecBranch needs the "
                "same ones at every length"
            )
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
