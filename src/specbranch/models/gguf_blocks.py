"""The blocks in which a GGUF file stores its matrices, for a model that was loaded from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

from specbranch.models.cpu.blocks import KINDS, BlockMatrix, leave_blocks
from specbranch.models.k_quants import regrouped

TENSORS = "tensors.json"  # in the folder where the file's configuration is
COMPARED_ROWS = 64


def save_tensors(reader: GGUFReader, folder: Path) -> None:
    """Note where a file has its tensors: reading that from the file takes seconds."""
    tensors = {
        tensor.name: {
            "kind": tensor.tensor_type.name,
            "shape": tensor.data.shape,
            "offset": int(tensor.data_offset),
        }
        for tensor in reader.tensors
    }
    (folder / TENSORS).write_text(json.dumps(tensors, default=int))


def attach_blocks(model: PreTrainedModel, file: Path, folder: Path) -> None:
    """Leave the blocks of its weights at each of the model's linear layers and embeddings.

    `pack_blocks` has the model compute with them. Matrices that are stored or named in other ways
    get none.

    Args:
        model: loaded from the file, in float32.
        file: the GGUF file.
        folder: with its `TENSORS`.
    """
    tensors = json.loads((folder / TENSORS).read_text())
    stored = {
        ours: tensors[theirs]
        for theirs, ours in get_gguf_hf_weights_map(model, TensorProcessor()).items()
        if theirs in tensors
    }
    data = np.memmap(file, np.uint8, "r")
    found = {
        id(weight): _matrix(weight.detach(), data, stored[name], model)
        for name, weight in model.named_parameters()  # one that is tied comes once
        if name in stored
    }
    for module in model.modules():
        if type(module) in (nn.Linear, nn.Embedding):  # a subclass may compute something else
            matrix = found.get(id(module.weight))
            if matrix is not None:
                leave_blocks(module, matrix)


def _matrix(
    weight: Tensor, data: np.ndarray, tensor: dict[str, Any], model: PreTrainedModel
) -> BlockMatrix | None:
    kind = KINDS.get(tensor["kind"])
    if kind is None or len(tensor["shape"]) != 2:
        return None
    rows, length = tensor["shape"]
    stored = data[tensor["offset"] : tensor["offset"] + rows * length].reshape(rows, length)
    read = GGMLQuantizationType[tensor["kind"]]
    compared = weight[:COMPARED_ROWS]
    for order in _orders(rows, model):
        first = np.ascontiguousarray(stored[order[:COMPARED_ROWS]])
        if torch.equal(torch.from_numpy(quants.dequantize(first, read)), compared):
            blocks = regrouped(torch.from_numpy(stored[order]), tensor["kind"])
            return BlockMatrix(kind, blocks.view(rows, -1, kind.nbytes))
    return None


def _orders(rows: int, model: PreTrainedModel) -> Iterator[np.ndarray]:
    """Orders in which a file may have a matrix's rows.

    For some architectures llama.cpp interleaves the rotary halves of a head.
    """
    yield np.arange(rows)
    config = model.config.get_text_config()
    heads = {config.num_attention_heads, getattr(config, "num_key_value_heads", None)}
    for count in heads - {None}:
        if rows % (2 * count) == 0:
            yield np.arange(rows).reshape(count, -1, 2).swapaxes(1, 2).reshape(rows)
