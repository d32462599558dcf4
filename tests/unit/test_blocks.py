"""Blocks of GGUF files: weights to the last bit, and rows that do not depend on each other."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import nn

from specbranch import LLM, SamplingParams
from specbranch.cache_folder import cache_folder, prepare_folder
from specbranch.models.cpu import prepacking
from specbranch.models.cpu.blocks import (
    KINDS,
    BlockEmbedding,
    BlockLinear,
    BlockMatrix,
    PackedBlocks,
    leave_blocks,
    pack_blocks,
)
from specbranch.models.cpu.custom_ops import CompiledLayers, compiler, load_operators
from specbranch.models.cpu.prepacking import pack
from specbranch.models.k_quants import regrouped
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from
from specbranch.training.draft import gguf_file
from specbranch.training.draft.gguf_file import write_gguf
from tests.forwards import computing_threads, fresh, product_of_rows
from tests.gguf_files import gguf_llama, write_metadata

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(compiler() is None, reason="no C++ compiler here"),
]

K_QUANTS = ("Q4_K", "Q5_K", "Q6_K")
TOLERANCE = 1e-5  # of a product in float32, relative to the sum of the products' sizes


@pytest.fixture(scope="module", autouse=True)
def operators():
    prepare_folder(cache_folder())
    load_operators(cache_folder(), compiler())


def matrix(kind, rows, inputs, seed=0):
    """A random one, and its weights as the gguf library reads them."""
    read, random = GGMLQuantizationType[kind], np.random.default_rng(seed)
    if kind in K_QUANTS:
        stored = random_k_quants(read, rows, inputs, random)
    else:
        stored = quants.quantize(random.standard_normal((rows, inputs), np.float32), read)
    weights = torch.from_numpy(quants.dequantize(stored, read))
    blocks = regrouped(torch.from_numpy(stored), kind).view(rows, -1, KINDS[kind].nbytes)
    return BlockMatrix(KINDS[kind], blocks), weights


def random_k_quants(kind, rows, inputs, random):
    """As a file has them; the gguf library reads them only."""
    count, size = inputs // 256, GGML_QUANT_SIZES[kind][1]
    stored = random.integers(0, 256, (rows, count, size), np.uint8)
    scales = (random.standard_normal((rows, count, 2)) * 1e-3).astype(np.float16).view(np.uint8)
    if kind == GGMLQuantizationType.Q6_K:
        stored[..., -2:] = scales[..., :2]
    else:
        stored[..., :4] = scales
    return stored.reshape(rows, -1)


def linear(weights, bias=False):
    made = nn.Linear(weights.shape[1], weights.shape[0], bias).requires_grad_(False)
    made.weight = nn.Parameter(weights, requires_grad=False)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 256), (7, 768)])
def test_no_bit_of_a_weight_is_lost(kind, shape):
    stored, weights = matrix(kind, *shape)
    packed = PackedBlocks(stored, 0)
    assert torch.equal(packed.read(torch.arange(shape[0])), weights)
    some = torch.tensor([[3, 0], [6, 3]])
    assert torch.equal(packed.read(some), weights[some])
    assert packed.equals(weights)
    other = weights.clone()
    other[-1, -1] += 1
    assert not packed.equals(other)
    assert not packed.equals(weights[:-1])
    with pytest.raises(IndexError, match=f"no row {shape[0]}"):
        packed.read(torch.tensor([shape[0]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_the_products_whatever_is_run_with_them(kind, bias, threads):
    """The inputs are more than are unpacked at a time, and the rows more than are multiplied."""
    stored, weights = matrix(kind, 136, 512)
    plain = linear(weights, bias)
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(1))
    with computing_threads(threads):
        found = product_of_rows(BlockLinear(plain, PackedBlocks(stored, 0)), x)
    exact = plain.double()(x.double())
    sizes = x.double().abs() @ weights.double().abs().T
    assert ((found - exact).abs() <= TOLERANCE * sizes).all()


def test_threads_change_no_bit():
    stored, weights = matrix("Q4_1", 640, 512)
    layer = BlockLinear(linear(weights), PackedBlocks(stored, 0))
    x = torch.randn(9, 512)
    with computing_threads(1):
        one = layer(x)
    with computing_threads(2):
        assert torch.equal(layer(x), one)


def test_some_rows_keep_whole_blocks():
    stored, weights = matrix("Q5_1", 40, 64)
    order = torch.tensor([3, 39, 0])
    assert PackedBlocks(stored.rows(order), 0).equals(weights[order])


def test_weights_that_were_changed_are_left():
    stored, weights = matrix("Q4_0", 8, 32)
    model = nn.Sequential(linear(weights), linear(weights.clone()))
    for layer in model:
        leave_blocks(layer, stored)
    model[1].weight.data[2, 3] += 1e-3
    pack_blocks(model)
    assert [type(layer) for layer in model] == [BlockLinear, nn.Linear]


def test_compiled_code_finds_the_matrices_of_the_model_that_runs(tmp_path):
    models = []
    for seed in range(2):
        (first, weights), (table, embedded) = matrix("Q4_1", 8, 32, seed), matrix("Q8_0", 9, 64, 7)
        model = nn.Sequential(nn.Embedding.from_pretrained(embedded), linear(weights))
        leave_blocks(model[0], table)
        leave_blocks(model[1], first)
        pack_blocks(model)
        assert [type(layer) for layer in model] == [BlockEmbedding, BlockLinear]
        models.append(model)
    layers = [CompiledLayers(model, tmp_path, compiler()) for model in models]
    x, ids = torch.randn(3, 32), torch.tensor([[8, 0]])
    for model, found in [*zip(models, layers, strict=True)] * 2:
        found.run()
        assert torch.equal(torch.ops.specbranch.block_linear(x, 1, 8), model[1](x))
        assert torch.equal(torch.ops.specbranch.block_embedding(ids, 0, 9, 64), model[0](ids))


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A tiny target, its embeddings in Q5_1 and its layers in Q8_0."""
    monkeypatch.setenv("SPECBRANCH_CACHE", str(tmp_path / "cache"))
    return written(tmp_path, "model.gguf", gguf_llama())


def written(folder, name, model, tokens=()):
    write_metadata(folder / "metadata.gguf", model)
    write_gguf(model, list(tokens), folder / "metadata.gguf", folder / name)
    return folder / name


def test_every_matrix_of_a_file_stays_in_its_blocks(file):
    model = load_model(ModelSpec(str(file), device="cpu"))
    dequantized = load_model(ModelSpec(str(file), device="cpu", dtype="float32"))
    text = [(5 * i * i + i) % 200 for i in range(40)]
    expected = fresh(dequantized, text)
    pack(model)
    kinds = [type(module) for module in model.modules()]
    assert nn.Linear not in kinds and nn.Embedding not in kinds
    assert kinds.count(BlockLinear) == 3 * 7 + 1
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.packed is table.packed  # they are tied
    found = fresh(model, text)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert invariant_from(CausalRunner(model)) is not None


def test_texts_are_those_of_the_dequantized_model_by_every_method(file, tmp_path):
    draft = written(tmp_path, "draft.gguf", gguf_llama(num_hidden_layers=1), range(3, 200, 2))
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    options = {"executor": "inline", "enforce_eager": True, "speculate": "always"}
    with LLM(str(file), None, dtype="float32", **options) as llm:
        assert llm.target.how == "Q8_0 weights in float32 on cpu, eager"
        [expected] = llm.generate("hello", params)
    with LLM(str(file), str(draft), **options) as llm:
        for model in (llm.target, llm.draft):
            assert model.how == "Q8_0 blocks, computed in float32, on cpu, eager"
        for method in ("autoregressive", "specbranch", "speculative", "lookup"):
            [out] = llm.generate("hello", params, method=method)
            assert out.outputs[0].token_ids == expected.outputs[0].token_ids


def test_a_draft_has_the_rows_that_it_scores_in_blocks(file, tmp_path):
    tokens = [0, 5, 7, 40]
    draft = written(tmp_path, "draft.gguf", gguf_llama(num_hidden_layers=1), tokens)
    model = load_model(ModelSpec(str(draft), device="cpu", drafts=True))
    expected = fresh(model, [5, 9])
    pack(model, verifies=False)
    assert isinstance(model.get_output_embeddings().scored, BlockLinear)
    assert model.get_output_embeddings().scored.packed.rows == len(tokens)
    torch.testing.assert_close(fresh(model, [5, 9]), expected, rtol=1e-4, atol=1e-4)


def test_k_quants_of_a_file_stay_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECBRANCH_CACHE", str(tmp_path / "cache"))
    swapped = {"Q8_0": GGMLQuantizationType.Q4_K, "Q5_1": GGMLQuantizationType.Q6_K}
    tensors, random = gguf_file._tensors, np.random.default_rng(0)
    monkeypatch.setattr(
        gguf_file,
        "_tensors",
        lambda model: [(name, swapped.get(k.name, k), w) for name, k, w in tensors(model)],
    )
    monkeypatch.setattr(
        quants, "quantize", lambda weight, kind: random_k_quants(kind, *weight.shape, random)
    )
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    file = written(tmp_path, "k.gguf", gguf_llama(**shape))
    model = load_model(ModelSpec(str(file), device="cpu"))
    expected = fresh(model, [5, 9, 2])
    pack(model)
    runner = CausalRunner(model)
    assert runner.describe("m").matrices == (9, 9)
    torch.testing.assert_close(fresh(model, [5, 9, 2]), expected, rtol=1e-4, atol=1e-4)


def test_what_is_stored_in_other_ways_is_dequantized_and_said(file, monkeypatch):
    monkeypatch.setattr("specbranch.models.gguf_blocks.KINDS", {"Q5_1": KINDS["Q5_1"]})
    with LLM(str(file), None, executor="inline", enforce_eager=True) as llm:
        assert llm.target.matrices == (23, 2)
        assert llm.target.how == (
            "Q8_0 weights, 2 of 23 matrices in their blocks, computed in float32, on cpu, eager"
        )


def test_without_a_compiler_weights_are_dequantized(file, monkeypatch):
    monkeypatch.setattr(prepacking, "compiler", lambda: None)
    runner = CausalRunner(load_model(ModelSpec(str(file), device="cpu")))
    runner.pack()
    assert runner.describe("m").how == "Q8_0 weights in float32 on cpu, eager"
