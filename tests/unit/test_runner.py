"""Whatever path the tokens took into the cache, they are worth what a fresh forward says."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specbranch.models.kv_cache import StaticKVLayer
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.sequence_state import LookaheadRow
from tests.forwards import (
    ALIGNED,
    CAPACITY,
    FIXED,
    LONGEST,
    assert_close,
    fresh,
    fresh_ends,
    model_of,
    some_tokens,
)
from tests.tiny import ARCHITECTURES, tiny_model
from tests.tree import Tree

pytestmark = pytest.mark.usefixtures("small_blocks")

ACTIONS = 18  # per example


@pytest.mark.parametrize(
    ("padding", "attention"),
    [(NATURAL, "sdpa"), (FIXED, "sdpa"), (NATURAL, "eager"), (ALIGNED, "sdpa")],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_path_gives_the_logits_of_a_fresh_forward(
    architecture: str, padding: Padding, attention: str, data: st.DataObject
) -> None:
    tree = Tree(model_of(architecture, attention), padding)
    tree.prefill(data)
    for _ in range(ACTIONS):
        tree.act(data)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fixed_width_reaches_the_last_position(architecture: str, attention: str) -> None:
    """Padding must not ask for positions, or slots, that the model does not have."""
    positions = 24
    model = tiny_model(
        architecture, attn_implementation=attention, max_position_embeddings=positions
    )
    runner = CausalRunner(model)
    runner.open(0, positions, FIXED)
    tokens = some_tokens(positions)
    found = [runner.run(0, tokens[:19]).logits, *(runner.run(0, [t]).logits for t in tokens[19:])]
    assert_close(torch.cat(found), fresh(model, tokens))


def test_prefill_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbranch.models.runner.PREFILL_CHUNK", 4)
    model, tokens = model_of("llama"), some_tokens(20)
    for padding in (NATURAL, FIXED):
        runner = CausalRunner(model)
        runner.open(0, 20, padding)
        runner.prefill(0, tokens[:6])
        runner.prefill(0, tokens[6:15])
        assert_close(runner.run(0, tokens[15:]).logits, fresh(model, tokens)[15:])


def test_sequences_do_not_disturb_each_other() -> None:
    model = model_of("llama")
    runner = CausalRunner(model)
    ours, theirs = some_tokens(12, 1), some_tokens(12, 2)
    runner.open(0, 16)
    runner.open(1, 16)
    runner.run(0, ours[:5])
    runner.run(1, theirs[:7])
    [fork] = runner.fork(1, [4])
    runner.run(0, ours[5:8])
    stepped = runner.step(1, {fork: 9})
    runner.close(1)
    assert_close(runner.run(0, ours[8:]).logits, fresh(model, ours)[8:])
    assert_close(stepped, fresh(model, [*theirs[:4], 9])[-1:])


@pytest.mark.parametrize("padding", [NATURAL, FIXED])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_those_of_the_last_layers(architecture: str, padding: Padding) -> None:
    model = model_of(architecture)
    tokens = some_tokens(LONGEST)
    with torch.inference_mode():
        states = model(
            torch.tensor([tokens]), use_cache=False, output_hidden_states=True
        ).hidden_states
    runner = CausalRunner(model)
    runner.open(0, LONGEST, padding)
    assert runner.run(0, tokens[:2]).hidden is None
    for layers in (1, 2, len(states)):
        runner.rewind(0, 2)
        hidden = runner.run(0, tokens[2:], layers).hidden
        assert hidden is not None
        expected = torch.stack([state[0, 2:] for state in states[-layers:]])
        assert_close(hidden, expected)


def layers_of(runner: CausalRunner, sequence: int = 0) -> list[StaticKVLayer]:
    layers: list[StaticKVLayer] = runner._states[sequence].kv_cache.layers
    assert all(isinstance(layer, StaticKVLayer) for layer in layers)
    return layers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_branches_share_the_prefix(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of k branches is one row of k tokens; it writes k slots and copies none."""
    runner = CausalRunner(model_of("llama", attention))
    runner.open(0, 64)
    runner.run(0, some_tokens(30))
    state, layers = runner._states[0], layers_of(runner)
    slabs = [x for layer in layers for x in (layer.keys, layer.values)]
    before = [kv_cache.clone() for kv_cache in slabs]
    shapes: list[torch.Size] = []
    seen: list[tuple[int, torch.Size]] = []
    update = StaticKVLayer.update

    def spy(
        layer: StaticKVLayer, keys: Tensor, values: Tensor, *args: Any
    ) -> tuple[Tensor, Tensor]:
        shapes.append(keys.shape)
        visible = update(layer, keys, values, *args)
        seen.extend((x.data_ptr(), x.shape) for x in visible)
        return visible

    monkeypatch.setattr(StaticKVLayer, "update", spy)
    branches = runner.fork(0, [30, 30, 30, 21, 4])
    assert not shapes
    assert state.used == 30
    for steps in (1, 2):
        shapes.clear()
        seen.clear()
        runner.step(0, dict.fromkeys(branches, 7))
        used = 30 + 5 * steps
        assert state.used == used
        assert shapes == [torch.Size([1, 2, 5, 8])] * len(layers)
        assert seen == [(kv_cache.data_ptr(), torch.Size([1, 2, used, 8])) for kv_cache in slabs]
    for kv_cache, old in zip(slabs, before, strict=True):
        written = (kv_cache != old).any(-1).any(1)[0].nonzero().flatten().tolist()
        assert written == list(range(30, 40))


@pytest.fixture
def forked() -> tuple[CausalRunner, int]:
    """A trunk of 6 tokens, and a branch that leaves it after 4 and has 2 of its own."""
    runner = CausalRunner(model_of("llama"))
    runner.open(0, 32)
    runner.run(0, some_tokens(6))
    [branch] = runner.fork(0, [4])
    runner.step(0, {branch: 1})
    runner.step(0, {branch: 2})
    return runner, branch


@pytest.mark.parametrize("length", [-1, 7])
def test_rewind_out_of_range(forked: tuple[CausalRunner, int], length: int) -> None:
    runner, branch = forked
    with pytest.raises(ValueError, match=f"cannot rewind to {length}: the prefix has 6 tokens"):
        runner.rewind(0, length)
    runner.step(0, {branch: 3})
    assert runner.length(0) == 6


@pytest.mark.parametrize("position", [-1, 7])
def test_fork_out_of_range(forked: tuple[CausalRunner, int], position: int) -> None:
    runner, branch = forked
    with pytest.raises(ValueError, match=f"cannot fork at {position}: the path has 6 tokens"):
        runner.fork(0, [2, position])
    with pytest.raises(ValueError, match=f"cannot fork at {position}: the path has 6 tokens"):
        runner.fork(0, [position], branch)


@pytest.mark.parametrize("end", ["run", "rewind", "keep"])
def test_branches_end_with_the_trunk_they_left(forked: tuple[CausalRunner, int], end: str) -> None:
    """A branch whose slots were given away must not be stepped into them."""
    runner, branch = forked
    {
        "run": lambda: runner.run(0, [5]),
        "rewind": lambda: runner.rewind(0, 6),
        "keep": lambda: runner.keep(0, branch),
    }[end]()
    for use in (
        lambda: runner.step(0, {branch: 3}),
        lambda: runner.fork(0, [1], branch),
        lambda: runner.keep(0, branch),
    ):
        with pytest.raises(KeyError):
            use()


@pytest.mark.parametrize("end", ["rewind", "keep"])
def test_dropped_branches_give_their_slots_back(end: str) -> None:
    """Capacity counts the tokens held at once, however many came and went."""
    model, tokens = model_of("llama"), some_tokens(4)
    runner = CausalRunner(model)
    runner.open(0, 9)
    runner.run(0, tokens)
    for token in range(3):
        branches = runner.fork(0, [4] * 4)
        stepped = runner.step(0, dict.fromkeys(branches, token))
        assert_close(stepped[-1:], fresh(model, [*tokens, token])[-1:])
        if end == "keep":
            runner.keep(0, branches[-1])
        else:
            runner.rewind(0, 4)


def test_closing_frees_the_cache(forked: tuple[CausalRunner, int]) -> None:
    runner, _ = forked
    runner.open(1, 32)
    runner.run(1, some_tokens(3))
    tensors = [weakref.ref(x) for layer in layers_of(runner) for x in (layer.keys, layer.values)]
    runner.close(0)
    gc.collect()
    assert len(tensors) == 4
    assert not any(tensor() is not None for tensor in tensors)
    with pytest.raises(KeyError):
        runner.run(0, [1])
    assert runner.length(1) == 3


def test_a_reopened_sequence_starts_empty(forked: tuple[CausalRunner, int]) -> None:
    runner, branch = forked
    runner.close(0)
    runner.open(0, 32)
    assert runner.length(0) == 0
    with pytest.raises(KeyError):
        runner.step(0, {branch: 3})
    tokens = some_tokens(5, 3)
    assert_close(runner.run(0, tokens).logits, fresh(runner.model, tokens))


@pytest.mark.parametrize("padding", [NATURAL, FIXED, ALIGNED], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_asides_see_their_own_path(architecture: str, attention: str, padding: Padding) -> None:
    model = tiny_model(architecture, attn_implementation=attention)
    runner = CausalRunner(model)
    text, new, then = some_tokens(9), some_tokens(3, seed=1), some_tokens(2, seed=2)
    paths = [[5], [5, 6], [5, 7], [5, 7, 8]]
    lookahead_rows = [
        LookaheadRow(path[-1], len(text) + len(path), sees)
        for path, sees in zip(paths, [[], [0], [0], [0, 2]], strict=True)
    ]
    runner.open(0, CAPACITY, padding)
    runner.prefill(0, text)
    out = runner.run(0, new, lookahead_rows=lookahead_rows)
    assert out.lookahead_rows is not None
    assert_close(out.lookahead_rows, fresh_ends(model, [[*text, new[0], *path] for path in paths]))
    # The trunk knows nothing of them, now and later.
    trunk = torch.cat([out.logits, runner.run(0, then).logits])
    assert_close(trunk, fresh(model, [*text, *new, *then])[len(text) :])
    assert runner.length(0) == len(text) + len(new) + len(then)


@pytest.mark.parametrize(
    ("padding", "before", "count"),
    [(FIXED, 8, 7), (FIXED, 13, 2), (ALIGNED, 13, 2), (NATURAL, CAPACITY - 3, 2)],
    ids=str,
)
def test_asides_without_room_are_left_out(padding: Padding, before: int, count: int) -> None:
    """Wider than a forward may be; over the border of a block; beyond the cache's end."""
    runner = CausalRunner(tiny_model("llama"))
    runner.open(0, CAPACITY, padding)
    runner.prefill(0, some_tokens(before))
    lookahead_rows = [LookaheadRow(1, before + 1, []), LookaheadRow(2, before + 2, [0])]
    assert runner.run(0, some_tokens(count), lookahead_rows=lookahead_rows).lookahead_rows is None
    assert runner.length(0) == before + count
