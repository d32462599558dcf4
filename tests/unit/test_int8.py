"""Layers of 8 bits: near the layer they were made of, and rows that do not depend on each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.models import loader
from specbranch.models.cpu import int8
from specbranch.models.cpu.custom_ops import CompiledLayers, compiler
from specbranch.models.cpu.int8 import LARGEST, ZERO, Int8Linear, obstacle, quantized
from specbranch.models.cpu.prepacking import pack
from specbranch.models.loader import ModelSpec, load_model
from tests.forwards import computing_threads, product_of_rows
from tests.refusals import refusal
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
needs_vnni = pytest.mark.skipif(obstacle(CPU) is not None, reason=str(obstacle(CPU)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(-20, 20))
def test_numbers_are_the_nearest(seed, exponent):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    numbers, scale = quantized(x)
    assert torch.equal(numbers, numbers.to(torch.int8).float())
    assert (numbers.abs().amax(1) == LARGEST).all()
    assert ((numbers * scale - x).abs() <= scale * 0.5001).all()


def test_zeros_stay_zeros():
    numbers, scale = quantized(torch.zeros(2, 3))
    assert not numbers.any()
    assert scale.isfinite().all()


@needs_vnni
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_the_products_whatever_is_run_with_them(bias, threads):
    plain = nn.Linear(96, 72, bias).requires_grad_(False)
    ours = Int8Linear(plain, 0)
    x = torch.randn(40, 96)
    with computing_threads(threads):
        found = product_of_rows(ours, x)
    expected = plain(x)
    assert (found - expected).norm() < 0.02 * expected.norm()


@needs_vnni
def test_products_are_those_of_the_integers():
    """Not only near: sums of integers have no rounding."""
    plain = nn.Linear(48, 24, bias=False).requires_grad_(False)
    x = torch.randn(6, 48)
    (rows, row_scale), (columns, column_scale) = quantized(x), quantized(plain.weight)
    sums = rows.double() @ columns.double().T
    expected = (sums.float() * column_scale[:, 0]) * row_scale
    assert torch.equal(Int8Linear(plain, 0)(x), expected)


@needs_vnni
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler here")
def test_compiled_code_finds_the_layers_of_the_model_that_runs(tmp_path):
    models = [nn.Sequential(), nn.Sequential()]
    for model in models:
        model.extend(Int8Linear(nn.Linear(8, 8, bias=False), layer) for layer in range(2))
    found = [CompiledLayers(model, tmp_path, compiler()) for model in models]
    x = torch.randn(4, 8)
    numbers, scale = quantized(x)
    unsigned = (numbers + ZERO).to(torch.uint8)
    with torch.inference_mode():
        for model, layers in [*zip(models, found, strict=True)] * 2:
            layers.run()
            for layer in model:
                product = torch.ops.specbranch.int8_linear(unsigned, layer.layer, 8)
                assert torch.equal(product * scale, layer(x))


@needs_vnni
def test_every_linear_layer_is_quantized():
    model = tiny_model("llama")
    count = sum(type(module) is nn.Linear for module in model.modules())
    pack(model, int8=True)
    numbers = [module.layer for module in model.modules() if isinstance(module, Int8Linear)]
    assert sorted(numbers) == list(range(count))


@needs_vnni
def test_texts_are_those_of_the_quantized_target(tmp_path):
    """Greedy and coupled, by every kind of method; whether or not the draft is quantized."""
    target = save_pair_half(tmp_path / "target", tiny_model("llama"), tiny_tokenizer())
    draft = save_pair_half(tmp_path / "draft", tiny_model("llama", seed=1), tiny_tokenizer())
    texts = {0.0: [], 1.0: []}
    for kind in ("int8", None):
        with LLM(
            target,
            draft,
            executor="inline",
            quantization="int8",
            draft_quantization=kind,
            speculate="always",
        ) as llm:
            assert llm.target.quantization == "int8"
            assert "int8 layers, float32" in llm.target.how
            assert llm.draft is not None
            assert llm.draft.quantization == kind
            for method in ("autoregressive", "specbranch", "speculative"):
                for temperature, found in texts.items():
                    params = SamplingParams(
                        temperature=temperature, seed=3, max_tokens=24, ignore_eos=True
                    )
                    [out] = llm.generate([[5, 9, 2]], params, method=method)
                    found.append([*out.outputs[0].token_ids])
    for found in texts.values():
        assert all(text == found[0] for text in found)


def load(name, **changed):
    return load_model(ModelSpec(name, device="cpu", quantization="int8", **changed))


def test_what_cannot_be_quantized_is_refused(model_folder, monkeypatch):
    name = str(model_folder)
    message = refusal(InputError, lambda: load_model(ModelSpec(name, quantization="int4")))
    assert message == "unknown quantization 'int4': use int8, or leave it out"
    message = refusal(InputError, lambda: load(name, sharded=True))
    assert message == f"{name} cannot be quantized to int8: it is sharded over devices"
    monkeypatch.setattr(loader, "int8_obstacle", lambda device: None)
    message = refusal(InputError, lambda: load(name, dtype="bfloat16"))
    assert message == "int8 layers take and give float32: use dtype auto, not bfloat16"


@pytest.mark.parametrize(
    ("device", "machine", "vnni", "reason"),
    [
        ("cuda", "x86_64", True, "it is for CPUs, and the model is on cuda"),
        ("cpu", "arm64", True, "it is for x86 CPUs"),
        ("cpu", "x86_64", False, "this CPU has no VNNI instructions"),
        ("cpu", "x86_64", True, None),
    ],
)
def test_obstacles_are_named(device, machine, vnni, reason, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: vnni)
    assert int8.obstacle(torch.device(device)) == reason
