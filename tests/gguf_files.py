"""GGUF files of tiny models, with a tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import PreTrainedModel

from specbranch.models.cpu.blocks import KINDS, BlockMatrix, leave_blocks
from tests.tiny import tiny_model

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["</s>", "<user>", "<assistant>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "ll"]
MERGES = ["h e", "l l"]


def gguf_llama(**overrides: Any) -> PreTrainedModel:
    """A tiny Llama that fits the tokenizer; its rows hold whole blocks of 32 weights."""
    shape: dict[str, Any] = {
        "vocab_size": len(TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
    }
    return tiny_model("llama", **shape | overrides)


def in_blocks(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights in blocks of Q8_0, as a loader leaves it."""
    done: dict[int, BlockMatrix] = {}
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        if id(module.weight) not in done:
            kind = GGMLQuantizationType.Q8_0
            stored = quants.quantize(module.weight.detach().numpy(), kind)
            module.weight.data = torch.from_numpy(quants.dequantize(stored, kind))
            blocks = torch.from_numpy(stored).view(len(stored), -1, KINDS["Q8_0"].nbytes)
            done[id(module.weight)] = BlockMatrix(KINDS["Q8_0"], blocks)
        leave_blocks(module, done[id(module.weight)])
    return model


def write_metadata(file: Path, model: PreTrainedModel, architecture: str = "llama") -> None:
    """A GGUF file without tensors: what `write_gguf` takes from the target's."""
    config = model.config
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    kinds = [TokenType.CONTROL] * len(SPECIAL)
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * (len(TOKENS) - len(SPECIAL))])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
