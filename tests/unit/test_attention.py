"""Attention over the slots that are seen: near the exact one, and queries apart from each other."""

import pytest
import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from specbranch.cache_folder import cache_folder, prepare_folder
from specbranch.models.cpu.attention import SEEN_ATTENTION, can_attend
from specbranch.models.cpu.custom_ops import compiler, load_operators
from specbranch.models.cpu.prepacking import pack
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from
from tests.forwards import assert_close, computing_threads, fresh
from tests.gguf_files import gguf_llama, in_blocks

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")

SHAPES = [(9, 3, 64), (4, 4, 16), (8, 2, 80), (2, 1, 128)]  # heads, cached heads, their size
EXTENT, CAPACITY, ROWS = 150, 200, 20


@pytest.fixture(scope="module", autouse=True)
def operators():
    prepare_folder(cache_folder())
    load_operators(cache_folder(), compiler())


@pytest.fixture(params=SHAPES, ids=str)
def inputs(request):
    """Queries, a whole cache's keys and values, and a mask as of a tree."""
    heads, cached, size = request.param
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, ROWS, heads, size, generator=generator).transpose(1, 2)
    keys, values = torch.randn(2, 1, cached, CAPACITY, size, generator=generator)
    mask = torch.rand(1, 1, ROWS, EXTENT, generator=generator) < 0.4
    mask[..., 0] = True
    mask[:, :, 3, 1:] = False  # a query that sees one slot
    return query, keys, values, mask


def attend(query, keys, values, mask):
    extent = mask.shape[-1]
    return torch.ops.specbranch.attend(
        query, keys[:, :, :extent], values[:, :, :extent], mask, query.shape[-1] ** -0.5
    )


def test_outputs_are_near_the_exact_ones(inputs):
    query, keys, values, mask = inputs
    groups = query.shape[1] // keys.shape[1]
    exact = scaled_dot_product_attention(
        query.double(),
        *(x[:, :, :EXTENT].double().repeat_interleave(groups, 1) for x in (keys, values)),
        attn_mask=mask,
    )
    found = attend(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact.transpose(1, 2), rtol=0, atol=3e-6)


def test_scores_far_apart_do_no_harm(inputs):
    query, keys, values, mask = inputs
    found = attend(1e4 * query, keys, values, mask)
    assert found.isfinite().all()
    assert (found.abs().amax() <= values.abs().amax() * 1.0001).all()


def test_a_query_alone_gives_the_same_bits(inputs):
    query, keys, values, mask = inputs
    whole = attend(*inputs)
    for first in range(ROWS):
        for rows in (1, 2, 5, 16):
            part = slice(first, first + rows)
            found = attend(query[:, :, part], keys, values, mask[:, :, part])
            assert torch.equal(found, whole[:, part])
    longer = pad(mask, (0, CAPACITY - EXTENT))
    assert torch.equal(attend(query, keys, values, longer), whole)
    for threads in (1, 2):
        with computing_threads(threads):
            assert torch.equal(attend(*inputs), whole)


def test_other_shapes_are_refused(inputs):
    query, keys, values, mask = inputs
    with pytest.raises(RuntimeError, match="attention of other shapes"):
        attend(query[:, :, 1:], keys, values, mask)
    with pytest.raises(RuntimeError, match="attention of other shapes"):
        attend(query[..., :8], keys[..., :8], values[..., :8], mask)


def test_a_model_in_blocks_attends_so():
    model = in_blocks(gguf_llama())
    assert can_attend(model)
    runner = CausalRunner(model)
    runner.pack()
    assert model.config._attn_implementation == SEEN_ATTENTION
    assert invariant_from(runner) == 1
    text = [(5 * i * i + i) % 200 for i in range(90)]
    expected = fresh(in_blocks(gguf_llama()), text)
    for padding in (NATURAL, Padding(1, 24, aligned=True)):
        runner.open(0, 120, padding)
        runner.prefill(0, text[:70])  # in tiles of the library's
        found = runner.run(0, text[70:]).logits
        assert_close(found, expected[70:])
        runner.close(0)


def test_heads_of_other_sizes_stay_with_the_library():
    model = in_blocks(gguf_llama(num_attention_heads=8))
    assert not can_attend(model)
    pack(model)
    assert model.config._attn_implementation != SEEN_ATTENTION
