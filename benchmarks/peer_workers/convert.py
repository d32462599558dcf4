"""A Llama checkpoint of `transformers` as GGUF; runs in llama.cpp's environment.

    python convert.py MODEL_FOLDER OUT.gguf --dtype f32

With ``--logits-of IDS.json OUT.npy`` also what llama.cpp makes of those token ids: one row of
logits for each.

llama.cpp rotates neighbouring channels where `transformers` rotates the halves of a head, so the
rows of the query and key projections change places. Tied embeddings have no output matrix, in both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from llama_cpp import GGML_TYPE_F32, Llama
from safetensors import deserialize

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` is ``blk.3.ffn_up.weight``."""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", maxsplit=3)
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight"


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection (heads · width, inputs), each head's halves interleaved."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def read_bfloat16(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in bfloat16, which numpy lacks: as their 16 bits."""
    found = {}
    for name, entry in deserialize(file.read_bytes()):
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{file}: {name} is {entry['dtype']}; only bfloat16 is converted")
        found[name] = np.frombuffer(entry["data"], np.uint16).reshape(entry["shape"])
    return found


def to_float32(bits: np.ndarray) -> np.ndarray:
    """A bfloat16 number is the upper half of the float32 number it stands for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def convert(folder: Path, out: Path, dtype: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "llama":
        raise SystemExit(f"{folder} is {config['model_type']}; only Llama models are converted")
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    # Only ids count here. This kind of vocabulary has no end-of-text token by default, so that
    # llama.cpp goes on after ours; it wants a line break.
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(["\\n", *(f"token {i}" for i in range(1, config["vocab_size"]))])
    for name, bits in read_bfloat16(folder / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            bits = neighbours(bits, heads)
        elif name.endswith("k_proj.weight"):
            bits = neighbours(bits, key_heads)
        if dtype == "f32" or bits.ndim == 1:  # llama.cpp has norms in float32 only
            writer.add_tensor(gguf_name(name), to_float32(bits))
        else:
            raw = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), bits.view(np.uint8), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model: Path, ids: list[int]) -> np.ndarray:
    llama = Llama(
        str(model),
        n_ctx=len(ids),
        logits_all=True,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        verbose=False,
    )
    llama.eval(ids)
    return llama.scores[: len(ids)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--logits-of", type=Path, nargs=2, metavar=("IDS", "OUT"))
    options = parser.parse_args()
    convert(options.folder, options.out, options.dtype)
    if options.logits_of:
        ids, found = options.logits_of
        np.save(found, logits(options.out, json.loads(ids.read_text())))


if __name__ == "__main__":
    main()
