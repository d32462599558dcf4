"""Weights in float16: no bit of them is lost, and rows do not depend on each other."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specbranch.models.cpu.custom_ops import SOURCE, CompiledLayers, compiler, operators_library
from specbranch.models.cpu.half import HalfLinear, scaled
from specbranch.models.cpu.prepacking import PackedLinear, pack
from tests.forwards import computing_threads, product_of_rows
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

needs_fbgemm = pytest.mark.skipif(
    scaled(torch.ones(2, 2)) is None, reason="torch has no FBGEMM for this CPU"
)


def linear(inputs, outputs, bias=False, size=1.0):
    """A layer of a checkpoint in bfloat16."""
    made = nn.Linear(inputs, outputs, bias)
    made.weight.data = (made.weight.data * size).bfloat16().float()
    return made.requires_grad_(False)


@needs_fbgemm
@settings(max_examples=60, deadline=None)
@given(st.integers(-90, 90), st.integers(0, 1000))
def test_no_bit_of_a_bfloat16_weight_is_lost(exponent, seed):
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    weight *= 2.0**exponent
    found, scale = scaled(weight)
    assert torch.equal(found.half().float(), found)
    assert torch.equal(found.double() / scale, weight.double())


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([[1.0, 1 + 2**-12]]),  # float16 has 11 bits
        torch.tensor([[1.0, 2.0**-60]]),  # and few exponents
        torch.zeros(2, 2),
        torch.tensor([[2.0**120]]),
        torch.tensor([[2.0**-120]]),
        torch.tensor([[1.0, float("inf")]]),
        torch.tensor([[1.0, float("nan")]]),
        torch.ones(2, 2, dtype=torch.bfloat16),
    ],
)
def test_weights_that_float16_does_not_hold_are_left(weight):
    assert scaled(weight) is None


@needs_fbgemm
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_the_products_whatever_is_run_with_them(bias, threads):
    plain = linear(96, 72, bias, size=0.02)
    half = HalfLinear(plain, scaled(plain.weight), 0)
    x = torch.randn(40, 96)
    with computing_threads(threads):
        found = product_of_rows(half, x)
    torch.testing.assert_close(found, plain(x), rtol=1e-5, atol=1e-5)


@needs_fbgemm
def test_a_layer_that_float16_does_not_hold_is_packed_otherwise():
    model = tiny_model("llama").to(torch.bfloat16).to(torch.float32)
    odd = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        odd.weight[0, 0] = 1 + 2**-20
    count = sum(type(module) is nn.Linear for module in model.modules())
    pack(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(HalfLinear) == count - 1
    assert kinds.count(PackedLinear) == 1
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)


@needs_fbgemm
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_compiled_code_finds_the_layers_of_the_model_that_runs(tmp_path):
    models = [nn.Sequential(), nn.Sequential()]
    for model in models:
        for layer in range(2):
            plain = linear(8, 8)
            model.append(HalfLinear(plain, scaled(plain.weight), layer))
    found = [CompiledLayers(model, tmp_path, compiler()) for model in models]
    x = torch.randn(4, 8)
    for model, layers in [*zip(models, found, strict=True)] * 2:
        layers.run()
        for layer in model:
            y = torch.ops.specbranch.half_linear(x, layer.layer, 8)
            expected = torch.ops.quantized.linear_dynamic_fp16(x, *layer.packed)
            assert torch.equal(y, expected)


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("there", [b"\x7fELF and no more", None])
def test_operators_that_are_broken_are_built_anew(there, tmp_path):
    """In a process of its own: this one has loaded them."""
    library = operators_library(tmp_path)
    if there is not None:
        library.write_bytes(there)
    code = (
        "import logging, pathlib, sys, torch\n"
        "from specbranch.models.cpu import custom_ops\n"
        "logging.basicConfig(format='%(message)s')\n"
        "custom_ops.load_operators(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
        "print(torch.ops.specbranch.half_linear)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), compiler()], capture_output=True, text=True
    )
    assert done.stdout == "specbranch.half_linear\n", done.stderr
    assert (f"{library} is broken and is built anew: " in done.stderr) == (there is not None)


@needs_fbgemm
def test_what_the_compiler_says_is_told(tmp_path, monkeypatch):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {")
    monkeypatch.setattr("specbranch.models.cpu.custom_ops.SOURCE", broken)
    monkeypatch.setattr("torch.ops.specbranch", object())
    if compiler() is None:
        pytest.skip("no C++ compiler here")
    plain = linear(8, 8)
    model = nn.Sequential(HalfLinear(plain, scaled(plain.weight), 0))
    with pytest.raises(RuntimeError, match=r"cannot build broken\.cpp: .*error"):
        CompiledLayers(model, tmp_path, compiler())
    assert SOURCE.exists()
