"""Tiny random models and tokenizers, of real architectures but no use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

VOCABULARY = 64
POSITIONS = 256
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    # Ten times the usual: logits then lie far enough apart for rounding not to change the order.
    "initializer_range": 0.3,
    # A random model with tied embeddings says its last token again and again.
    "tie_word_embeddings": False,
}
GATED = {"intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": None}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "qwen2": GATED,
    "qwen3": GATED | {"head_dim": 8},
    "mistral": GATED | {"sliding_window": None},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 64},
    "gemma": GATED | {"head_dim": 8},
}


def tiny_model(
    architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random causal LM in evaluation mode; the same seed gives the same weights in any dtype.

    Args:
        architecture: a key of `ARCHITECTURES`.
        seed: of the weights; torch's global generator is left as it was.
        dtype: of the weights.
        overrides: configuration entries, and `attn_implementation` (default `sdpa`).
    """
    attention = overrides.pop("attn_implementation", "sdpa")
    entries = SHAPE | ARCHITECTURES[architecture] | overrides
    config = AutoConfig.for_model(architecture, **entries)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(dtype).eval()


def tiny_tokenizer(prefix: str = "w", size: int = VOCABULARY) -> PreTrainedTokenizerBase:
    """Words ``w0 w1 …``, one token each; another `prefix` gives another vocabulary."""
    words = {f"{prefix}{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=f"{prefix}0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"{prefix}0")


def save_pair_half(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Write a model folder as `load` reads it; returns its name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
