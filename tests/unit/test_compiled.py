"""Compiled forwards: the same numbers as the model's own, bit-identical at any padding."""

import gc
import logging
from pathlib import Path

import pytest
import torch

from specbranch.cache_folder import cache_folder
from specbranch.models.cpu import compiled
from specbranch.models.cpu.compiled import CompiledForward, library_name, obstacle
from specbranch.models.cpu.custom_ops import CompiledLayers
from specbranch.models.cpu.int8 import obstacle as int8_obstacle
from specbranch.models.padding import Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.sequence_state import LookaheadRow
from specbranch.models.validation import invariant_from, validate_cache
from specbranch.models.windows import FULL, AttentionWindows
from tests.families import EXACT
from tests.forwards import computing_threads
from tests.gguf_files import gguf_llama, in_blocks
from tests.tiny import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.slow

TOKENS = [(5 * i * i + i) % 60 for i in range(48)]
[WINDOWED] = [family for family in EXACT if family.kind == "gemma3_text"]
INT8 = ["llama in int8"] * (int8_obstacle(torch.device("cpu")) is None)
HAS_COMPILER = obstacle(tiny_model("llama")) is None
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler here")


def made(kind):
    """A tiny model; of checkpoints in 16 bits and of files in blocks, weights are kept in them."""
    name, _, bits = kind.partition(" in ")
    if bits == "blocks":
        return in_blocks(gguf_llama())
    model = tiny_model(name) if name in ARCHITECTURES else WINDOWED.model()
    return model.to(torch.bfloat16).to(torch.float32) if bits == "16 bits" else model


@pytest.fixture(
    scope="module", params=["llama", "gpt2", "windows in 16 bits", "llama in blocks", *INT8]
)
def runners(request, tmp_path_factory):
    """One model twice: compiled, and packed only; and the folder of the library."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECBRANCH_CACHE", str(folder))
        ours, theirs = (CausalRunner(made(request.param)) for _ in range(2))
        int8 = request.param in INT8
        frozen = gc.get_freeze_count()
        ours.compile("tiny", verifies=True, int8=int8)
        # The collector is the user's.
        assert gc.get_freeze_count() == frozen
        theirs.pack(int8)
        assert cache_folder() == folder
    return ours, theirs, folder, request.param


def in_chunks(runner, sizes, padding, layers=0):
    runner.open(1, 80, padding)
    outs, left = [], TOKENS
    for size in sizes:
        outs.append(runner.run(1, left[:size], layers))
        left = left[size:]
    assert not left
    runner.close(1)
    hidden = torch.cat([out.hidden for out in outs], 1) if layers else None
    return torch.cat([out.logits for out in outs]), hidden


@needs_compiler
def test_logits_and_hidden_states_are_the_models(runners):
    ours, theirs, *_ = runners
    assert ours.describe("m").compiled and not theirs.describe("m").compiled
    validate_cache(ours, "m")
    found, expected = (in_chunks(r, [40, 1, 7], Padding(), layers=2) for r in (ours, theirs))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)


@needs_compiler
def test_branches_and_asides_are_run(runners):
    results = []
    for runner in runners[:2]:
        runner.open(1, 80)
        runner.prefill(1, TOKENS[:20])
        a, b, c = runner.fork(1, [20, 20, 9])
        rows = [runner.step(1, {a: 3}), runner.step(1, {c: 4, b: 5, a: 6})]
        runner.keep(1, a)
        lookahead = [LookaheadRow(9, 23, []), LookaheadRow(8, 24, [0])]
        out = runner.run(1, [7], lookahead_rows=lookahead)
        results.append([*rows, out.logits, out.lookahead_rows])
        runner.close(1)
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_logits_are_bit_identical_at_every_width_and_number_of_threads(runners):
    ours = runners[0]
    padding = Padding.pick("auto", invariant_from(ours))
    expected, _ = in_chunks(ours, [16, 16, 16], padding)
    for threads in (1, 2):
        with computing_threads(threads):
            for sizes in ([1] * 48, [1, 2, 3, 4, 5, 6, 7, 8, 12], [15, 1, 9, 11, 12]):
                assert torch.equal(in_chunks(ours, sizes, padding)[0], expected)


@needs_compiler
def test_library_is_kept_and_belongs_to_the_weights(runners, monkeypatch, caplog):
    _, _, folder, kind = runners
    monkeypatch.setenv("SPECBRANCH_CACHE", str(folder))

    def refuse(*args):
        raise RuntimeError("the compiler is broken")

    monkeypatch.setattr(compiled, "_build", refuse)
    again = CausalRunner(made(kind))
    again.compile("again", verifies=True, int8=kind in INT8)
    assert again.describe("again").compiled
    other = made(kind)
    with torch.no_grad():
        other.get_input_embeddings().weight[0, 0] += 1
    assert library_name(other) != library_name(made(kind))
    assert library_name(other) != library_name(other, int8=True)
    other = CausalRunner(other)
    with caplog.at_level(logging.WARNING, "specbranch"):
        other.compile("other", verifies=True)
    assert not other.describe("other").compiled
    assert caplog.messages == ["other runs uncompiled, slower: the compiler is broken"]
    expected = in_chunks(other, [48], Padding())[0]
    assert expected.isfinite().all()


@needs_compiler
def test_a_broken_library_is_built_anew(runners, monkeypatch, caplog):
    _, _, folder, kind = runners
    int8 = kind in INT8
    monkeypatch.setenv("SPECBRANCH_CACHE", str(folder))
    library = folder / f"target-{library_name(made(kind), int8)}"
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])
    # In place of the compiler's minute.
    monkeypatch.setattr(compiled, "_build", lambda *args: args[-1].write_bytes(whole))
    again = CausalRunner(made(kind))
    with caplog.at_level(logging.WARNING, "specbranch"):
        again.compile("again", verifies=True, int8=int8)
    assert again.describe("again").compiled
    # torch has a word of its own about the file.
    [message] = [r.getMessage() for r in caplog.records if r.name == "specbranch"]
    assert message.startswith(f"{library} is broken and is built anew: ")
    assert "\n" not in message


@needs_compiler
def test_a_library_that_cannot_be_kept_is_not_made(tmp_path, monkeypatch, caplog):
    """The message names the folder."""
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("SPECBRANCH_CACHE", str(blocked / "cache"))
    runner = CausalRunner(tiny_model("llama"))
    with caplog.at_level(logging.WARNING, "specbranch"):
        runner.compile("m", verifies=True)
    assert not runner.describe("m").compiled
    [message] = caplog.messages
    assert message.startswith("m runs uncompiled, slower: ")
    assert str(blocked) in message
    validate_cache(runner, "m")


@needs_compiler
def test_a_folder_that_is_only_read_costs_one_line(tmp_path, monkeypatch, caplog):
    def read_only(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setenv("SPECBRANCH_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "TemporaryDirectory", read_only)
    runner = CausalRunner(tiny_model("llama"))
    with caplog.at_level(logging.WARNING, "specbranch"):
        runner.compile("m", verifies=True)
    assert not runner.describe("m").compiled
    assert caplog.messages == [
        f"m runs uncompiled, slower: [Errno 13] Permission denied: '{tmp_path}'"
    ]


def test_obstacles_are_named(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in obstacle(model)
    monkeypatch.setattr(compiled, "MOST_PARAMETERS", 10)
    assert obstacle(model) == "it is large"
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    monkeypatch.setattr(compiled, "MOST_PARAMETERS", 10**9)
    assert obstacle(eager) == "its attention is not sdpa"


def test_few_tokens_are_padded_with_copies_of_the_last():
    forward = object.__new__(CompiledForward)
    asked = []
    forward._shape, forward._dtype, forward._least = [(1, 2)], torch.float32, 4
    forward._layers = CompiledLayers(torch.nn.Module(), Path(), compiler="")

    def run(inputs):
        ids, mask, positions, slots, *_ = inputs
        asked.append((ids.tolist(), positions.tolist(), slots.tolist(), mask[0, 0].tolist()))
        return torch.zeros(ids.shape[1], 3), torch.zeros(1, ids.shape[1], 5)

    forward._run = run
    mask = torch.tensor([[True, False], [True, True]])
    cache, windows = compiled.StaticKVCache(1, 8), AttentionWindows((FULL,), {})
    logits, [hidden] = forward(cache, [7, 8], [0, 1], [3, 4], mask, windows)
    assert (logits.shape, hidden.shape) == ((2, 3), (2, 5))
    [(ids, positions, slots, rows)] = asked
    assert (ids, positions, slots) == ([[7, 8, 8, 8]], [[3, 4, 4, 4]], [0, 1, 1, 1])
    assert rows == [[True, False]] + [[True, True]] * 3
