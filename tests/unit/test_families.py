"""Families of models: their text is plain decoding's, or they are refused with a reason."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from specbranch import LLM, SamplingParams
from specbranch.models.layer_states import has_states
from specbranch.models.padding import NATURAL
from specbranch.models.runner import CausalRunner
from tests.families import EXACT, FAMILIES, WINDOW, Family, table
from tests.forwards import ALIGNED, FIXED, assert_close, fresh, some_tokens
from tests.tree import Tree

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_blocks")]

ACTIONS = 10  # per example
PROMPT = some_tokens(WINDOW + 3)
LENGTH = 12  # of what is generated, in tokens
OPTIONS: dict[str, Any] = {"gamma": 4, "speculate": "always", "retrieval": False}

each = pytest.mark.parametrize("family", EXACT, ids=lambda family: family.kind)


@functools.cache
def model_of(kind: str, noise: float = 0.0) -> PreTrainedModel:
    [family] = [family for family in EXACT if family.kind == kind]
    return family.model(noise)


@each
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_path_gives_the_logits_of_a_fresh_forward(family: Family, data: st.DataObject) -> None:
    model = model_of(family.kind)
    paddings = [NATURAL] if has_states(model.config) else [NATURAL, FIXED, ALIGNED]
    tree = Tree(model, data.draw(st.sampled_from(paddings)))
    tree.prefill(data)
    for _ in range(ACTIONS):
        tree.act(data)


def texts(target: str, draft: str, noise: float) -> None:
    """The target's text of each method is that of `transformers`."""
    model = model_of(target)
    ids = torch.tensor([PROMPT])
    own = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False
    )
    params = SamplingParams(max_tokens=LENGTH)
    with LLM.from_models(model, model_of(draft, noise), **OPTIONS) as llm:
        for method in ("autoregressive", "speculative", "specbranch"):
            [found] = llm.generate([PROMPT], params, method=method)
            assert found.outputs[0].token_ids == own[0, len(PROMPT) :].tolist(), method


@each
def test_text_is_that_of_transformers(family: Family) -> None:
    texts(family.kind, family.kind, noise=0.02)


@pytest.mark.parametrize(
    ("target", "draft"),
    [("gemma3_text", "mistral"), ("llama", "gpt_oss"), ("qwen3_moe", "gemma2")],
)
def test_a_draft_may_be_of_another_family(target: str, draft: str) -> None:
    texts(target, draft, noise=0.0)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "llama4_text"])
def test_texts_that_run_together_leave_their_windows_apart(family: str) -> None:
    model, paths = model_of(family), [some_tokens(n, n) for n in (3, WINDOW + 2, 3 * WINDOW)]
    runner = CausalRunner(model)
    for sequence, path in enumerate(paths):
        runner.open(sequence, 64)
        runner.prefill(sequence, path[:-2])
    for path, found in zip(
        paths, runner.run_many([(i, path[-2:]) for i, path in enumerate(paths)]), strict=True
    ):
        assert_close(found, fresh(model, path)[-2:])
    branches = [runner.fork(i, [len(path) - 3])[0] for i, path in enumerate(paths)]
    for path, found in zip(
        paths, runner.step_many([(i, {b: 7}) for i, b in enumerate(branches)]), strict=True
    ):
        assert_close(found, fresh(model, [*path[:-3], 7])[-1:])


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.refused], ids=lambda family: family.kind
)
def test_a_refusal_says_why(family: Family) -> None:
    message = family.refusal()
    assert message is not None
    assert family.refused is not None
    assert message.startswith(family.name)
    assert family.refused in message
    assert "\n" not in message


def test_the_page_has_the_table_of_these_families() -> None:
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert table() in page.read_text(encoding="utf-8")
