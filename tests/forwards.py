"""What a forward that knows no cache says, and the sizes of tests that hold a runner against it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specbranch.models.padding import Padding
from tests.tiny import VOCABULARY, tiny_model

TOLERANCE = 1e-4  # of float32 logits, relative to the largest
CAPACITY = 64
BLOCK = 8  # small, so that texts cross its borders
LONGEST = 19  # more than twice the width, so that runs are split
WIDTH = 8
FIXED = Padding.fixed(WIDTH)
ALIGNED = Padding(3, aligned=True)


@torch.inference_mode()
def fresh(model: PreTrainedModel, path: Sequence[int]) -> Tensor:
    """Logits ``[len(path), vocabulary]`` of one forward that knows no cache."""
    logits: Tensor = model(torch.tensor([path]), use_cache=False).logits[0].float()
    return logits


@torch.inference_mode()
def fresh_ends(model: PreTrainedModel, paths: Sequence[Sequence[int]]) -> Tensor:
    """Logits ``[len(paths), vocabulary]`` after the last token of each path."""
    ends = [len(path) - 1 for path in paths]
    # Padding on the right: no token sees what comes after it.
    rows = [[*path, *[0] * (max(ends) - end)] for path, end in zip(paths, ends, strict=True)]
    logits: Tensor = model(torch.tensor(rows), use_cache=False).logits.float()
    return logits[torch.arange(len(paths)), ends]


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    difference = (found - expected).abs().max().item()
    assert difference <= TOLERANCE * expected.abs().max().item()


@contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """That many of torch's, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product_of_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output for x, ``[n, features]``: each row's whatever is run with it."""
    whole: Tensor = layer(x)
    for rows in range(1, len(x) + 1):
        assert torch.equal(layer(x[:rows]), whole[:rows])
    assert torch.equal(layer(x[None, 3:10]), whole[None, 3:10])
    return whole


def some_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(VOCABULARY, (count,), generator=generator).tolist()
    return tokens


@functools.cache
def model_of(
    architecture: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    return tiny_model(architecture, attn_implementation=attention, dtype=dtype)
