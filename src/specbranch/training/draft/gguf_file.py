"""A draft as a GGUF file: 8 bits a weight, and readable by llama.cpp, too.

    python -m specbranch.training.draft.gguf_file DRAFT --target TARGET.gguf --out FILE.gguf

Metadata and tokenizer are the target's, which has to be a GGUF file itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from numpy.typing import NDArray
from transformers import PreTrainedModel

from specbranch.errors import InputError, SpecBranchError
from specbranch.models.gguf import DRAFTED
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.restricted_head import ENTRY

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(draft: PreTrainedModel, tokens: Sequence[int], target: Path, out: Path) -> None:
    """Write a Llama draft with tied embeddings.

    Args:
        draft: a cut of the target: as wide, and with fewer layers.
        tokens: those that it drafts; none for all.
        target: a GGUF file.
        out: the draft's.

    Raises:
        InputError: another architecture, or a head of its own.
    """
    config = draft.config
    if config.model_type != "llama" or not config.tie_word_embeddings:
        raise InputError("only a Llama draft with tied embeddings can be written as a GGUF file")
    reader = GGUFReader(target)
    writer = GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        if name == "llama.block_count":
            value = config.num_hidden_layers
        elif name == "general.file_type":
            value = 7  # mostly Q8_0
        kind = field.types[0]
        writer.add_key_value(name, value, kind, field.types[-1] if len(field.types) > 1 else None)
    if len(tokens):
        writer.add_key_value(DRAFTED, list(tokens), GGUFValueType.ARRAY, GGUFValueType.UINT32)
    for name, kind, weight in _tensors(draft):
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(draft: PreTrainedModel) -> list[tuple[str, GGMLQuantizationType, NDArray[np.float32]]]:
    config = draft.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = []
    for name, value in draft.state_dict().items():
        weight: NDArray[np.float32] = value.detach().float().cpu().numpy()
        if name == "model.embed_tokens.weight":
            # Half of a small draft's weights, and the least sensitive ones.
            found.append(("token_embd.weight", GGMLQuantizationType.Q5_1, weight))
        elif name == "model.norm.weight":
            found.append(("output_norm.weight", GGMLQuantizationType.F32, weight))
        elif name.startswith("model.layers."):
            _, _, number, rest = name.split(".", 3)
            ours = _NAMES[rest.removesuffix(".weight")]
            if ours in heads:  # the rotary halves of a head are interleaved in llama.cpp
                split = weight.reshape(heads[ours], 2, -1, weight.shape[1])
                weight = split.swapaxes(1, 2).reshape(weight.shape)
            kind = GGMLQuantizationType.F32 if weight.ndim == 1 else GGMLQuantizationType.Q8_0
            found.append((f"blk.{number}.{ours}.weight", kind, np.ascontiguousarray(weight)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m specbranch.training.draft.gguf_file", description=__doc__
    )
    parser.add_argument("draft", type=Path, help="folder that `specbranch draft make` wrote")
    parser.add_argument("--target", type=Path, required=True, help="the target's GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="the draft's")
    options = parser.parse_args(arguments)
    try:
        model = load_model(ModelSpec(str(options.draft), dtype="float32", device="cpu"))
        with torch.inference_mode():
            write_gguf(model, getattr(model.config, ENTRY, None) or [], options.target, options.out)
    except SpecBranchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
