"""A small model of the target's family, with its tokenizer: an untrained draft."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from specbranch.errors import InputError

_LAYER = re.compile(r"(.*\.(?:layers|h)\.)(\d+)(\..*)")
_HEADS_WIDE = 64
# Entries of a configuration that hold an item for each layer.
_LISTS = ("layer_types", "attention_layers", "attention_types", "no_rope_layers")


def from_layers(target: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A cut of the target: some of its layers, and everything outside of them.

    Args:
        target: a causal LM.
        layers: which ones, from 0, in the order of the draft.

    Raises:
        InputError: no such layer.
    """
    config = target.config.get_text_config()
    depth = config.num_hidden_layers
    if wrong := [layer for layer in layers if not 0 <= layer < depth] or (not layers and [-1]):
        raise InputError(f"the target has layers 0 to {depth - 1}, and none {wrong[0]}")
    draft = _fresh(_shallow(config, len(layers)))
    entries = {}
    for name, value in target.state_dict().items():
        found = _LAYER.fullmatch(name)
        if found is None:
            entries[name] = value
            continue
        before, number, after = found.groups()
        for place, layer in enumerate(layers):
            if int(number) == layer:
                entries[f"{before}{place}{after}"] = value
    draft.load_state_dict(entries)
    return draft


def narrow(target: PreTrainedModel, parameters: int, layers: int = 4) -> PreTrainedModel:
    """A model of the target's architecture with about so many parameters.

    Its embeddings are the target's, projected on their main directions: the singular vectors of
    the embedding table keep as much of it as any projection of that width does.

    Args:
        target: a causal LM.
        parameters: of the draft.
        layers: of the draft, at most the target's.

    Raises:
        InputError: too few parameters for the vocabulary.
    """
    config = target.config.get_text_config()
    layers = min(layers, config.num_hidden_layers)
    table = target.get_input_embeddings().weight.detach().float()
    widest = config.hidden_size
    step = _HEADS_WIDE if widest >= 2 * _HEADS_WIDE else max(8, widest // 4)
    widths = range(step, widest + 1, step)
    sized = [(width, _narrowed(config, width, layers)) for width in widths]
    fitting = [(w, c) for w, c in sized if _count(c) <= parameters * 1.05]
    if not fitting:
        least = _count(sized[0][1])
        raise InputError(
            f"a draft of {parameters / 1e6:g}M parameters cannot hold {len(table)} tokens: "
            f"give --size {least / 1e6:.1f}M or more"
        )
    width, narrower = fitting[-1]
    draft = _fresh(narrower)
    centred = table - table.mean(0)
    _, _, directions = torch.linalg.svd(centred.T @ centred)
    projected = table @ directions[:width].T
    with torch.no_grad():
        # As large as the target's own, which the family's first norm or residual stream expects.
        projected *= table.std() / projected.std()
        draft.get_input_embeddings().weight.copy_(projected)
        if not config.tie_word_embeddings:
            draft.get_output_embeddings().weight.copy_(projected)
    return draft


def _fresh(config: PreTrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _shallow(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    shallow = copy.deepcopy(config)
    for name in _LISTS:
        if isinstance(getattr(shallow, name, None), list):
            setattr(shallow, name, getattr(shallow, name)[:layers])
    shallow.num_hidden_layers = layers
    if hasattr(shallow, "quantization_config"):
        del shallow.quantization_config
    return shallow


def _narrowed(config: PreTrainedConfig, width: int, layers: int) -> PreTrainedConfig:
    narrower = _shallow(config, layers)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    size = min(size, width)
    narrower.hidden_size = width
    narrower.num_attention_heads = max(1, width // size)
    groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
    if hasattr(narrower, "num_key_value_heads"):
        several = narrower.num_attention_heads
        narrower.num_key_value_heads = next(
            several // group for group in range(groups, 0, -1) if several % group == 0
        )
    if getattr(config, "head_dim", None):
        narrower.head_dim = size
    if getattr(config, "intermediate_size", None):
        ratio = config.intermediate_size / config.hidden_size
        narrower.intermediate_size = max(8, round(ratio * width / 32) * 32)
    return narrower


def _count(config: PreTrainedConfig) -> int:
    """Parameters of a model, without a byte of its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()
