"""Batched forwards over several sequences: the logits of each are those of a fresh forward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch.models.runner import CausalRunner
from tests.tiny import ARCHITECTURES, VOCABULARY, tiny_model


def fresh(model, path):
    with torch.inference_mode():
        return model(torch.tensor([path]), use_cache=False).logits[0].float()


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_sequences_that_run_together_do_not_see_each_other(architecture, data):
    model = tiny_model(architecture)
    runner = CausalRunner(model)
    token = st.integers(0, VOCABULARY - 1)
    tokens = st.lists(token, min_size=1, max_size=6)
    paths = data.draw(st.lists(tokens, min_size=2, max_size=4), "prompts")
    for sequence in range(len(paths)):
        runner.open(sequence, 100)
    logits = runner.run_many(list(enumerate(paths)))
    for path, found in zip(paths, logits, strict=True):
        close(found, fresh(model, path))
    # Some go back, and all go on with other numbers of tokens.
    for sequence, path in enumerate(paths):
        kept = data.draw(st.integers(0, len(path)), "kept")
        runner.rewind(sequence, kept)
        del path[kept:]
    more = [data.draw(tokens, "more") for _ in paths]
    for path, added, found in zip(paths, more, runner.run_many(list(enumerate(more))), strict=True):
        path += added
        close(found, fresh(model, path)[-len(added) :])
    # Branches of all of them grow together, and one of each is kept.
    forks = [data.draw(st.lists(st.integers(0, len(p)), min_size=1, max_size=3)) for p in paths]
    ids = [runner.fork(sequence, places) for sequence, places in enumerate(forks)]
    branches = [
        {i: paths[s][:at] for i, at in zip(ids[s], forks[s], strict=True)}
        for s in range(len(paths))
    ]
    for _ in range(2):
        step = [(s, {i: data.draw(token) for i in ids[s]}) for s in range(len(paths))]
        for (s, added), found in zip(step, runner.step_many(step), strict=True):
            for row, (branch, value) in zip(found, added.items(), strict=True):
                branches[s][branch].append(value)
                close(row, fresh(model, branches[s][branch])[-1])
    for s in range(len(paths)):
        runner.keep(s, ids[s][0])
        path = [*branches[s][ids[s][0]], 3]
        close(runner.run(s, [3]).logits[0], fresh(model, path)[-1])


@pytest.mark.parametrize("packed", [False, True])
def test_it_is_one_forward_of_the_model(packed):
    model = tiny_model("llama")
    runner = CausalRunner(model)
    if packed:
        runner.pack()
    for sequence in range(3):
        runner.open(sequence, 40)
    forwards = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: forwards.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    runner.run_many([(0, [1, 2]), (1, [3]), (2, [4, 5, 6])])
    branches = [runner.fork(sequence, [1, 1]) for sequence in range(3)]
    runner.step_many([(s, dict.fromkeys(ids, 7)) for s, ids in enumerate(branches)])
    hook.remove()
    assert forwards == [(1, 6), (1, 6)]
    attention = model.config._attn_implementation
    assert attention != "sdpa_segments"  # single forwards attend as before
    expected = fresh(tiny_model("llama"), [1, 2, 9])[-1]
    runner.rewind(0, 2)
    close(runner.run(0, [9]).logits[0], expected)


def test_a_model_with_eager_attention_runs_one_after_another():
    model = tiny_model("llama", attn_implementation="eager")
    runner = CausalRunner(model)
    paths = [[1, 2, 3], [4]]
    for sequence in range(2):
        runner.open(sequence, 40)
    for path, found in zip(paths, runner.run_many(list(enumerate(paths))), strict=True):
        close(found, fresh(model, path))
