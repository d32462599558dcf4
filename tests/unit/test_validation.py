"""A model that cannot be run over a cache that forks is found out before it decodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from specbranch.errors import UnsupportedModelError
from specbranch.models.architecture import check_cache
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import validate_cache
from tests.refusals import refusal
from tests.tiny import ARCHITECTURES, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("padding", [NATURAL, Padding.fixed(8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_check_runner_accepts(architecture: str, padding: Padding, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, dtype=dtype)
    check_cache(model.config, architecture)
    runner = CausalRunner(model)
    validate_cache(runner, architecture, padding)
    assert not runner._states


def meddle(model: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` alter the arguments of the model's every forward over a cache."""
    forward = model.forward

    def meddled(*args: Any, **options: Any) -> Any:
        if options["use_cache"]:
            change(options)
        return forward(*args, **options)

    model.forward = meddled


def blind_branches(options: dict[str, Any]) -> None:
    options["attention_mask"] = torch.ones_like(options["attention_mask"]).tril()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda options: options.update(attention_mask=None), id="no mask"),
        pytest.param(blind_branches, id="a mask of its own"),
    ],
)
@pytest.mark.parametrize("padding", [NATURAL, Padding.fixed(8)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_check_runner_refuses_attention_that_ignores_the_mask(
    architecture: str, padding: Padding, change: Callable[[dict[str, Any]], None]
) -> None:
    model = tiny_model(architecture)
    meddle(model, change)
    runner = CausalRunner(model)
    message = refusal(UnsupportedModelError, lambda: validate_cache(runner, "odd", padding))
    assert message.startswith("odd ")
    assert "over a cache that forks" in message
    assert not runner._states


@pytest.mark.parametrize(
    "positions",
    [
        pytest.param(lambda given: None, id="its own"),
        pytest.param(torch.zeros_like, id="none"),
        pytest.param(lambda given: given[:, :1] + torch.arange(given.shape[1]), id="in a row"),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_check_runner_refuses_attention_that_ignores_positions(
    architecture: str, positions: Callable[[Tensor], Tensor | None]
) -> None:
    model = tiny_model(architecture)
    meddle(model, lambda options: options.update(position_ids=positions(options["position_ids"])))
    message = refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    assert "gives other logits over a cache that forks" in message


def test_check_runner_refuses_a_model_that_knows_no_positions() -> None:
    model: Any = tiny_model("llama")
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    message = refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    assert "odd cannot be run over a cache that forks: TypeError" in message


def test_check_runner_refuses_numbers_that_are_none() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = torch.nan
    message = refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    assert message == (
        "odd gives logits that are not finite in torch.float16: "
        "its weights are broken, or need another dtype"
    )
