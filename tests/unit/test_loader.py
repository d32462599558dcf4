"""A model that cannot be used is refused in one line that says why; all others load and run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, GPTJConfig, GPTJForCausalLM, PreTrainedConfig

from specbranch import zoo
from specbranch.errors import InputError, UnsupportedModelError
from specbranch.models import loader
from specbranch.models.architecture import check_cache
from specbranch.models.loader import ModelSpec, load_model, load_tokenizer, pick_device, pick_dtype
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import validate_cache
from specbranch.models.vocabularies import check_vocabularies
from specbranch.models.windows import windows_of
from tests.refusals import refusal
from tests.tiny import POSITIONS, save_pair_half, tiny_model, tiny_tokenizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def load(name: str, dtype: str = "auto") -> None:
    """All that is loaded of a model, in the order in which `LLM` does it."""
    load_tokenizer(name)
    load_model(ModelSpec(name, dtype, "cpu"))


def test_load(model_folder: Path) -> None:
    name = str(model_folder)
    tokenizer, model = load_tokenizer(name), load_model(ModelSpec(name, "float32", "cpu"))
    tokens = tokenizer("w3 w14 w15")["input_ids"]
    assert tokens == [3, 14, 15]
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, tiny_model("llama")(ids).logits)


def test_architectures_without_sdpa_attend_eagerly(tmp_path: Path) -> None:
    config = GPTJConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=POSITIONS
    )
    name = save_pair_half(tmp_path, GPTJForCausalLM(config), tiny_tokenizer())
    model = load_model(ModelSpec(name, device="cpu"))
    assert model.config._attn_implementation == "eager"
    validate_cache(CausalRunner(model), name)


TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt_neo": (
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
        "its local attention counts slots of the cache",
    ),
    "mamba": ({}, "its layers do not go on from a state with several tokens"),
    "deepseek_v32": ({}, "attention layers choose what they attend to"),
    "xlstm": ({}, "its configuration names no context length (a recurrent model?)"),
    "t5": ({}, "it is an encoder-decoder"),
}


def unsupported(architecture: str) -> PreTrainedConfig:
    sizes = {} if architecture in ("gpt_neo", "t5", "xlstm") else TINY
    return AutoConfig.for_model(architecture, **(sizes | UNSUPPORTED[architecture][0]))


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_caches_that_cannot_rewind_are_refused(architecture: str, tmp_path: Path) -> None:
    """Before any weights are read: the folder has none."""
    unsupported(architecture).save_pretrained(tmp_path)
    message = refusal(UnsupportedModelError, lambda: load(str(tmp_path)))
    assert message.startswith(f"{tmp_path} ({architecture}) cannot be used: ")
    assert UNSUPPORTED[architecture][1] in message


@pytest.mark.parametrize(
    ("architecture", "options", "sizes"),
    [
        ("mistral", {"sliding_window": None}, {}),
        ("mistral", {"sliding_window": 32}, {"sliding_attention": 32}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 32}, {}),
        ("qwen2_moe", {"use_sliding_window": False, "sliding_window": 32}, {}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 8}, {}),
        ("gemma3_text", {}, {"sliding_attention": 4096}),
        ("llama4_text", {}, {"chunked_attention": 8192}),
        ("gpt_neo", {"num_layers": 2, "attention_types": [[["global"], 2]]}, {}),
    ],
)
def test_windows_are_those_that_are_used(
    architecture: str, options: dict[str, Any], sizes: dict[str, int]
) -> None:
    base = {} if architecture == "gpt_neo" else TINY
    config = AutoConfig.for_model(architecture, **(base | options))
    check_cache(config, architecture)
    assert windows_of(config, config.max_position_embeddings).sizes == sizes


def test_a_window_that_is_switched_off_is_none() -> None:
    entries = {"sliding_window": 32, "num_hidden_layers": 2}
    assert not windows_of(PreTrainedConfig(use_sliding_window=False, **entries), 64).sizes
    assert windows_of(PreTrainedConfig(**entries), 64).sizes == {"sliding_attention": 32}


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def remove(*files: Path) -> None:
    for file in files:
        file.unlink()


def shorten(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no model '{}': no such folder"),
    "empty folder": (
        lambda f: remove(*f.iterdir()),
        "'{}' is no model folder: it has no config.json",
    ),
    "no config": (
        lambda f: remove(f / "config.json"),
        "'{}' is no model folder: it has no config.json",
    ),
    "config cut off": (lambda f: shorten(f / "config.json", 40), "is not a valid JSON file"),
    "unknown architecture": (
        lambda f: edit(f / "config.json", model_type="unheard-of"),
        "model type `unheard-of`",
    ),
    "a size in words": (
        lambda f: edit(f / "config.json", hidden_size="many"),
        "Field 'hidden_size' expected int, got str (value: 'many')",
    ),
    "sizes that do not fit": (
        lambda f: edit(f / "config.json", num_attention_heads=5),
        "The hidden size (32) is not a multiple of the number of attention heads (5)",
    ),
    "no weights": (lambda f: remove(f / "model.safetensors"), "no file named model.safetensors"),
    "empty weights": (
        lambda f: shorten(f / "model.safetensors", 0),
        "the weights of {} are broken: ",
    ),
    "weights cut off in the header": (
        lambda f: shorten(f / "model.safetensors", 100),
        "the weights of {} are broken: ",
    ),
    "weights cut off": (
        lambda f: shorten(f / "model.safetensors", -1),
        "the weights of {} are broken: ",
    ),
    "a tensor missing": (
        lambda f: edit_weights(f, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        "the weights of {} do not fit its configuration: 1 missing or of another shape, "
        "model.layers.1.mlp.up_proj.weight first; copy or download it again",
    ),
    "a tensor of another shape": (
        lambda f: edit_weights(f, lambda w: w.update({"model.norm.weight": torch.ones(16)})),
        "the weights of {} do not fit its configuration: 1 missing or of another shape, "
        "model.norm.weight first; copy or download it again",
    ),
    "no tokenizer": (
        lambda f: remove(*f.glob("token*")),
        "the tokenizer of {} is missing or broken",
    ),
    "tokenizer cut off": (
        lambda f: shorten(f / "tokenizer.json", 200),
        "the tokenizer of {} is missing or broken",
    ),
    "tokenizer of no kind": (
        lambda f: edit(f / "tokenizer.json", model={"type": "BPE"}),
        "the tokenizer of {} is missing or broken",
    ),
    "tokenizer without entries": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "the tokenizer of {} is missing or broken (no entry ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_folders_are_refused(damage: str, model_folder: Path) -> None:
    harm, expected = DAMAGE[damage]
    harm(model_folder)
    message = refusal(InputError, lambda: load(str(model_folder)))
    assert expected.format(model_folder) in message


THEIRS = {
    "config.json": {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "Theirs",
        "auto_map": {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]},
    },
}


@pytest.mark.parametrize("file", THEIRS)
def test_code_that_a_folder_brings_is_not_run(
    file: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody asked whether it may, as `transformers` does where a terminal can answer."""
    (model_folder / "theirs.py").write_text("raise SystemExit('their code ran')")
    edit(model_folder / file, **THEIRS[file])
    monkeypatch.setattr("builtins.input", lambda question: "y")
    message = refusal(InputError, lambda: load(str(model_folder)))
    assert message == (
        f"cannot load {model_folder}: it brings code of its own, which SpecBranch does not run"
    )


def test_a_file_is_no_model(model_folder: Path) -> None:
    file = model_folder / "model.safetensors"
    message = refusal(InputError, lambda: load(str(file)))
    assert message == f"'{file}' is a file: give the model's folder"


def test_names_that_neither_disk_nor_hub_know() -> None:
    message = refusal(InputError, lambda: load("no-such-owner/no-such-model"))
    assert message.startswith("no model 'no-such-owner/no-such-model': no such folder, and the hub")


def test_bundled_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.BUNDLED, "target", tmp_path / "gone")
    message = refusal(InputError, lambda: load("target"))
    assert message == (
        f"the bundled model 'target' is missing from {tmp_path / 'gone'}: reinstall specbranch"
    )


def test_pick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == CUDA


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("gpu", "unknown device 'gpu': use cpu, cuda, cuda:1, mps, …"),
        ("", "unknown device '': use"),
        ("cuda:-1", "unknown device 'cuda:-1': use"),
        ("cuda:1", "device 'cuda:1' is not here: this machine has 1 CUDA device(s)"),
        ("meta", "device 'meta' cannot compute here: use auto or cpu"),
    ],
)
def test_devices_that_are_not_here(
    device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert expected in refusal(InputError, lambda: pick_device(device))


@pytest.mark.parametrize(
    ("name", "stored", "gains", "device", "picked"),
    [
        ("auto", None, False, CPU, torch.float32),
        ("auto", torch.float32, True, CPU, torch.float32),
        ("auto", torch.bfloat16, True, CPU, torch.bfloat16),
        ("auto", torch.bfloat16, False, CPU, torch.float32),
        ("auto", torch.bfloat16, False, CUDA, torch.float32),
        ("auto", torch.float16, True, CPU, torch.float32),
        ("auto", torch.float16, True, CUDA, torch.float16),
        ("bfloat16", torch.float32, False, CPU, torch.bfloat16),
        ("float16", torch.float32, False, CPU, torch.float16),
        ("float32", torch.bfloat16, True, CUDA, torch.float32),
    ],
)
def test_pick_dtype(
    name: str,
    stored: torch.dtype | None,
    gains: bool,
    device: torch.device,
    picked: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "gains_by_bfloat16", lambda device: gains)
    assert pick_dtype(name, AutoConfig.for_model("llama", dtype=stored), device) == picked


def test_dtype_of_the_checkpoint(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is stored, and converted where the machine gains nothing by bfloat16."""
    save_pair_half(model_folder, tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer())
    for gains, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(loader, "gains_by_bfloat16", lambda device, n=gains: n)
        assert load_model(ModelSpec(str(model_folder), device="cpu")).dtype == expected


def test_unknown_dtypes(model_folder: Path) -> None:
    message = refusal(InputError, lambda: load(str(model_folder), "int8"))
    assert message == "unknown dtype 'int8': use auto, float32, bfloat16, float16"


def test_a_pair_of_one_vocabulary() -> None:
    check_vocabularies(tiny_tokenizer(), tiny_tokenizer(), ("big", "small"))


@pytest.mark.parametrize(
    ("prefix", "size", "difference"),
    [
        ("v", 64, "big has 64 tokens, small has 64, 64 of them unknown"),
        ("w", 80, "big has 64 tokens, small has 80, 16 of them unknown"),
    ],
)
def test_a_draft_with_another_vocabulary(prefix: str, size: int, difference: str) -> None:
    target, draft = tiny_tokenizer(), tiny_tokenizer(prefix, size)
    message = refusal(InputError, lambda: check_vocabularies(target, draft, ("big", "small")))
    assert difference in message
    assert message.endswith("choose a draft of the target's own family")


def test_a_draft_with_the_same_words_in_another_order() -> None:
    words = tiny_tokenizer()
    reverse = {f"w{i}": 63 - i for i in range(64)}

    class Swapped:
        def get_vocab(self) -> dict[str, int]:
            return reverse

    message = refusal(
        InputError,
        lambda: check_vocabularies(words, Swapped(), ("big", "small")),
    )
    assert "64 of them unknown to the target or under another id" in message


@pytest.mark.parametrize(("size", "differing"), [(60, 0), (65, 1), (70, 6)])
def test_a_draft_may_have_some_tokens_of_its_own(
    caplog: pytest.LogCaptureFixture, size: int, differing: int
) -> None:
    """A chat model's special tokens: they are drafted in vain, and no text changes."""
    check_vocabularies(tiny_tokenizer(), tiny_tokenizer("w", size), ("big", "small"))
    said = [record.getMessage() for record in caplog.records]
    expected = f"{differing} of {size} tokens of small are unknown to big"
    assert [line.startswith(expected) for line in said] == [True] * bool(differing)


def test_packed_weights_are_counted():
    model = tiny_model("llama")
    runner = CausalRunner(model)
    count = model.num_parameters()
    runner.pack()
    assert runner.describe("tiny").parameters == count
