"""A sharded model leaves room for the model that runs beside it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from specbranch.errors import InputError
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.memory import room_beside, weights_size
from tests.refusals import refusal
from tests.tiny import tiny_model

GB = 10**9


@pytest.mark.parametrize(
    ("reserved", "expected"),
    [
        ({}, {0: 72 * GB, 1: 72 * GB, "cpu": 90 * GB}),
        ({1: 10 * GB}, {0: 72 * GB, 1: 60 * GB, "cpu": 90 * GB}),
        ({"cpu": 10 * GB}, {0: 72 * GB, 1: 72 * GB, "cpu": 78 * GB}),
        ({0: 70 * GB}, {0: 0, 1: 72 * GB, "cpu": 90 * GB}),
        ({"mps": 10 * GB}, {0: 72 * GB, 1: 72 * GB, "cpu": 90 * GB}),
    ],
)
def test_room_is_left_on_the_other_models_device(
    reserved: dict[int | str, int], expected: dict[int | str, int]
) -> None:
    assert room_beside({0: 80 * GB, 1: 80 * GB, "cpu": 100 * GB}, reserved) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_size_of_weights(dtype: torch.dtype, tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    assert weights_size(model.config, dtype) == size


def test_a_sharded_target_is_loaded_beside_its_draft(
    model_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerate = ModuleType("accelerate.utils")
    accelerate.get_max_memory = lambda: {0: GB, "cpu": 10 * GB}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "accelerate", ModuleType("accelerate"))
    monkeypatch.setitem(sys.modules, "accelerate.utils", accelerate)
    asked: dict[str, Any] = {}

    def from_pretrained(where: str, **options: Any) -> Any:
        asked.update(options)
        return tiny_model("llama"), {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    draft = ModelSpec(str(model_folder), "float32", "cpu")
    target = ModelSpec(str(model_folder), device="cpu", sharded=True, beside=draft)
    load_model(target)
    size = tiny_model("llama").num_parameters() * 4
    assert asked["device_map"] == "auto"
    assert asked["max_memory"] == {0: 0.9 * GB, "cpu": int(9 * GB - 1.2 * size)}
    load_model(draft)
    assert (asked["device_map"], asked["max_memory"]) == (None, None)


def test_sharding_needs_accelerate(model_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    spec = ModelSpec(str(model_folder), device="cpu", sharded=True)
    message = refusal(InputError, lambda: load_model(spec))
    assert message == "a sharded model needs accelerate: pip install accelerate"
