"""Matrices that stay in the blocks of a GGUF file, multiplied with float32 activations.

A plain decoding step reads every weight once, so its time is that of their bytes: a fifth of
float32's for 4 bits and their scales. A weight is made in a register as the file says (scale ×
number + offset), so a product is that of the dequantized matrix, up to the order of its sum. That
order is the inputs' own, so a row's product is bit-identical whatever rows are multiplied with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PADDED_ROWS = 64  # the kernels take so many outputs at a time: `PADDED_GROUPS` of blocks.h
GROUP = 16  # outputs that are stored together: `LANES` of blocks.h
CHECKED_ROWS = 4096  # unpacked at a time, for a comparison


@dataclass(frozen=True)
class Kind:
    """How blocks are stored.

    Attributes:
        number: of the kind in blocks.h.
        inputs: of a block.
        fields: of a block's bytes, in their order: bytes of an element, and elements.
    """

    number: int
    inputs: int
    fields: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Of a block."""
        return sum(size * count for size, count in self.fields)


# By their names in GGUF: scale, offset, fifth bits, numbers. Those of K-quants, whose scales are
# products of two numbers, have these products in float32 (`regrouped`).
KINDS = {
    "Q4_0": Kind(0, 32, ((2, 1), (4, 4))),
    "Q4_1": Kind(1, 32, ((2, 1), (2, 1), (4, 4))),
    "Q5_0": Kind(2, 32, ((2, 1), (4, 1), (4, 4))),
    "Q5_1": Kind(3, 32, ((2, 1), (2, 1), (4, 1), (4, 4))),
    "Q8_0": Kind(4, 32, ((2, 1), (1, 32))),
    "Q4_K": Kind(5, 32, ((4, 1), (4, 1), (4, 4))),
    "Q5_K": Kind(6, 32, ((4, 1), (4, 1), (4, 1), (4, 4))),
    "Q6_K": Kind(7, 16, ((4, 1), (1, 16))),
}


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix ``[rows, inputs]`` in blocks.

    Attributes:
        kind: of `KINDS`.
        blocks: uint8 ``[rows, blocks, bytes]``.
    """

    kind: Kind
    blocks: Tensor

    @property
    def inputs(self) -> int:
        return self.blocks.shape[1] * self.kind.inputs

    def rows(self, order: Tensor) -> BlockMatrix:
        """Some rows, int64 ``[n]``, in that order."""
        return BlockMatrix(self.kind, self.blocks[order])


class PackedBlocks:
    """A matrix in the layout of blocks.h; an embedding and a head that are tied share it.

    Args:
        matrix: with the fields of its kind.
        number: of the matrix in the model.
    """

    def __init__(self, matrix: BlockMatrix, number: int) -> None:
        rows, blocks, _ = matrix.blocks.shape
        self.kind, self.number = matrix.kind.number, number
        self.rows, self.inputs = rows, matrix.inputs
        padded = nn.functional.pad(matrix.blocks, (0, 0, 0, 0, 0, -rows % PADDED_ROWS))
        grouped = padded.view(-1, GROUP, blocks, matrix.kind.nbytes).transpose(1, 2)
        sizes = [size * count for size, count in matrix.kind.fields]
        fields = [
            field.unflatten(-1, (count, size)).transpose(2, 3).flatten(2)
            for field, (size, count) in zip(
                grouped.split(sizes, -1), matrix.kind.fields, strict=True
            )
        ]
        self.bytes = torch.cat(fields, -1).flatten()

    def read(self, rows: Tensor) -> Tensor:
        """Rows, int64 ``[…]``, unpacked: float32 ``[…, inputs]``."""
        found: Tensor = torch.ops.specbranch.read_blocks(
            rows, self.bytes, self.kind, self.rows, self.inputs
        )
        return found

    def equals(self, weight: Tensor) -> bool:
        """Whether it is this float32 matrix, to the last bit."""
        return weight.shape == (self.rows, self.inputs) and all(
            torch.equal(self.read(rows), weight[rows[0] : rows[-1] + 1])
            for rows in torch.arange(self.rows).split(CHECKED_ROWS)
        )


class BlockLinear(nn.Module):
    """A linear layer whose weight is in blocks."""

    def __init__(self, linear: nn.Linear, packed: PackedBlocks) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        operators, packed = torch.ops.specbranch, self.packed
        if torch.compiler.is_exporting():
            y = operators.block_linear(x, packed.number, packed.rows)
        else:
            y = operators.multiply_blocks(x, packed.bytes, packed.kind, packed.rows)
        return y if self.bias is None else y + self.bias


class BlockEmbedding(nn.Module):
    """An embedding table in blocks."""

    def __init__(self, packed: PackedBlocks) -> None:
        super().__init__()
        self.packed = packed

    def forward(self, ids: Tensor) -> Tensor:
        packed = self.packed
        if torch.compiler.is_exporting():
            found: Tensor = torch.ops.specbranch.block_embedding(
                ids, packed.number, packed.rows, packed.inputs
            )
            return found
        return packed.read(ids)


def leave_blocks(module: nn.Module, blocks: BlockMatrix) -> None:
    """Have a layer or a table know how its weight is stored, for `pack_blocks`."""
    module.__dict__["blocks"] = blocks


def blocks_of(module: nn.Module) -> BlockMatrix | None:
    """What `leave_blocks` left there."""
    found = module.__dict__.get("blocks")
    return found if isinstance(found, BlockMatrix) else None


def has_blocks(model: nn.Module) -> bool:
    """Whether there are any."""
    return any(blocks_of(module) is not None for module in model.modules())


def only_blocks(model: nn.Module) -> bool:
    """Whether all linear layers are multiplied from their blocks, and so by the same sums."""
    return any(isinstance(module, BlockLinear) for module in model.modules()) and not any(
        isinstance(module, nn.Linear) for module in model.modules()
    )


def pack_blocks(model: nn.Module) -> None:
    """Replace layers and tables by their blocks, where these are their weights to the last bit.

    The operators have to be loaded. Weights that were changed after they were loaded stay.
    """
    packed: dict[int, PackedBlocks] = {}
    for parent in [*model.modules()]:
        for name, child in [*parent.named_children()]:
            blocks = blocks_of(child)
            if blocks is None or not isinstance(child, nn.Linear | nn.Embedding):
                continue
            made = packed.get(id(blocks)) or PackedBlocks(blocks, len(packed))
            if not made.equals(child.weight.detach()):
                continue
            packed[id(blocks)] = made
            layer = BlockLinear(child, made) if isinstance(child, nn.Linear) else None
            setattr(parent, name, layer or BlockEmbedding(made))
