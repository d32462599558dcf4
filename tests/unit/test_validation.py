"""A model that cannot be run over a cache that forks is refused before it decodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from specbranch.errors import UnsupportedModelError
from specbranch.models.architecture import borders, check_cache
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from, validate, validate_cache
from specbranch.models.windows import SLIDING, windows_of
from tests.refusals import refusal
from tests.tiny import ARCHITECTURES, GATED, POSITIONS, SHAPE, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("padding", [NATURAL, Padding.fixed(8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accepted(architecture: str, padding: Padding, dtype: torch.dtype) -> None:
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
def test_refused_attention_that_ignores_the_mask(
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
def test_refused_attention_that_ignores_positions(
    architecture: str, positions: Callable[[Tensor], Tensor | None]
) -> None:
    model = tiny_model(architecture)
    meddle(model, lambda options: options.update(position_ids=positions(options["position_ids"])))
    message = refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    assert "gives other logits over a cache that forks" in message


def test_refused_a_model_that_knows_no_positions() -> None:
    model: Any = tiny_model("llama")
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    message = refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    assert "odd cannot be run over a cache that forks: TypeError" in message


def test_refused_numbers_that_are_none() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] = torch.nan
    message = refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    assert message == (
        "odd gives logits that are not finite in torch.float16: "
        "its weights are broken, or need another dtype"
    )


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 5.0, 8.0],
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = GATED | {"sliding_window": 16}


def made(kind: str, **entries: Any) -> Any:
    config = AutoConfig.for_model(kind, **(SHAPE | entries))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def validated(model: Any) -> None:
    """As every way in does it with a model in memory."""
    runner = CausalRunner(model)
    validate(runner, "odd", Padding.pick("auto", invariant_from(runner)))
    assert not runner._states


@pytest.mark.parametrize(
    ("kind", "entries", "reason"),
    [
        (
            "llama",
            GATED | {"rope_parameters": LONGROPE},
            "its rotary frequencies (longrope) change for texts of more than 64 tokens",
        ),
        ("mamba", {}, "odd "),
        (
            "bloom",
            {"max_position_embeddings": None},
            "its attention has biases by distance (ALiBi)",
        ),
        (
            "mpt",
            {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_position_embeddings": None},
            "its attention has biases by distance (ALiBi)",
        ),
        ("bart", {"encoder_layers": 1, "decoder_layers": 1}, "cannot be run over a cache"),
        ("openai-gpt", {}, "cannot be run over a cache that forks"),
        (
            "falcon",
            {"alibi": True, "new_decoder_architecture": False, "multi_query": True},
            "its attention has biases by distance (ALiBi)",
        ),
        ("xlm", {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, "odd "),
    ],
)
def test_models_in_memory_are_refused_in_one_line(
    kind: str, entries: dict[str, Any], reason: str
) -> None:
    message = refusal(UnsupportedModelError, lambda: validated(made(kind, **entries)))
    assert reason in message


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("mistral", WINDOW),
        ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
        ("gemma2", WINDOW | {"head_dim": 8}),
        ("phi3", WINDOW),
        ("phi3", WINDOW | {"sliding_window": POSITIONS}),
        ("mistral", WINDOW | {"sliding_window": 2 * POSITIONS}),
        ("gemma2", WINDOW | {"head_dim": 8, "sliding_window": POSITIONS}),
        (
            "llama",
            GATED | {"rope_parameters": LONGROPE | {"original_max_position_embeddings": POSITIONS}},
        ),
        (
            "llama",
            GATED
            | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        ),
        (
            "llama",
            GATED
            | {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
)
def test_borders_are_accepted(kind: str, entries: dict[str, Any]) -> None:
    """Windows, borders that no text crosses, and those at which nothing changes."""
    validated(made(kind, **entries))


@pytest.mark.parametrize(("smaller", "found"), [(0, {}), (1, {SLIDING: POSITIONS - 1})])
def test_a_window_as_long_as_the_context_is_none(smaller: int, found: dict[str, int]) -> None:
    config = made("phi3", **(WINDOW | {"sliding_window": POSITIONS - smaller})).config
    check_cache(config, "odd")
    assert windows_of(config, POSITIONS).sizes == found


@pytest.mark.parametrize(
    ("kind", "entries", "sizes"),
    [
        # As a model would that has its windows elsewhere than in its configuration.
        ("phi3", WINDOW, {}),
        ("phi3", WINDOW, {SLIDING: 17}),
        ("qwen2", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}, {SLIDING: 15}),
        ("llama", GATED | {"rope_parameters": LONGROPE}, {}),
    ],
)
@pytest.mark.parametrize("padding", [NATURAL, Padding.fixed(8)])
def test_the_trial_crosses_borders(
    kind: str, entries: dict[str, Any], sizes: dict[str, int], padding: Padding
) -> None:
    """So that it does not depend on the check of the configuration."""
    runner = CausalRunner(made(kind, **entries))
    runner.windows = replace(runner.windows, sizes=sizes)
    message = refusal(UnsupportedModelError, lambda: validate_cache(runner, "odd", padding))
    assert "gives other logits over a cache that forks" in message


@pytest.mark.parametrize("narrowed", [True, False])
def test_long_windows_are_tried_short(narrowed: bool) -> None:
    """A text that leaves them would take long; the model's own entry is left as it was."""
    long = {"sliding_window": 4096, "max_position_embeddings": 8192}
    model = made("phi3", **(WINDOW | long))
    if not narrowed:  # a model that does not look at its configuration
        model.forward = partial(full_attention, model)
        refusal(UnsupportedModelError, lambda: validate_cache(CausalRunner(model), "odd"))
    else:
        validate_cache(CausalRunner(model), "odd")
    assert model.config.sliding_window == 4096


def full_attention(model: Any, *args: Any, **options: Any) -> Any:
    """A forward that knows no windows but those of the masks that it is given."""
    before, model.config.sliding_window = model.config.sliding_window, None
    try:
        return type(model).forward(model, *args, **options)
    finally:
        model.config.sliding_window = before


def test_borders_are_those_that_a_text_can_cross() -> None:
    config = AutoConfig.for_model("llama", **(SHAPE | GATED | {"rope_parameters": LONGROPE}))
    config.attention_chunk_size, config.window_size = 32, POSITIONS
    assert borders(config) == [32, 64]
    assert borders(tiny_model("llama").config) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forwards_that_are_not_bit_exact_are_refused(dtype: torch.dtype) -> None:
    """By a last bit of one row, at one length of a forward's own tokens."""
    model: Any = tiny_model("llama", dtype=dtype)
    forward = model.forward

    def meddled(input_ids: Tensor, **options: Any) -> Any:
        out = forward(input_ids, **options)
        if options["use_cache"] and input_ids.shape[1] == 8 and input_ids[0, 0] == input_ids[0, 7]:
            row = out.logits[0, 0]
            row[0] = torch.nextafter(row[0], row[0] + 1)
        return out

    runner = CausalRunner(model)
    validate(runner, "odd", Padding.fixed(8))
    model.forward = meddled
    validate(CausalRunner(model), "odd", NATURAL)
    message = refusal(
        UnsupportedModelError, lambda: validate(CausalRunner(model), "odd", Padding.fixed(8))
    )
    assert message == (
        f"odd is not bit-exact with 8 tokens a forward in {dtype} on cpu: its logits depend on how "
        "a text is cut into forwards; use dtype=float32, or padding=None, which is exact up to "
        "rounding"
    )


def test_small_vocabularies_and_contexts_are_tried() -> None:
    validated(tiny_model("llama", vocab_size=6, max_position_embeddings=20))
