"""Models with states: what is kept, restored and run again, and in how many forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specbranch import LLM, SamplingParams
from specbranch.errors import UnsupportedModelError
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.recurrent_runner import KEPT, MOST_REPLAYED, RecurrentRunner
from specbranch.models.sequence_state import LookaheadRow
from specbranch.models.validation import invariant_from, validate
from tests.families import EXACT, Family
from tests.forwards import assert_close, fresh, some_tokens
from tests.refusals import refusal
from tests.tiny import tiny_model

RECURRENT = ["lfm2", "qwen3_5_text", "falcon_h1", "mamba2"]


def family(kind: str) -> Family:
    [found] = [family for family in EXACT if family.kind == kind]
    return found


@pytest.fixture(scope="module", params=RECURRENT)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return family(request.param).model()


class Counted:
    """A runner, and the shapes of its model's forwards."""

    def __init__(self, model: PreTrainedModel, capacity: int = 120) -> None:
        self.runner = RecurrentRunner(model)
        self.runner.open(0, capacity)
        self.shapes: list[tuple[int, int]] = []
        call: Any = self.runner._call

        def counted(cache: Any, tokens: list[list[int]], *args: Any) -> Any:
            self.shapes.append((len(tokens), len(tokens[0])))
            return call(cache, tokens, *args)

        self.runner._call = counted  # type: ignore[assignment, method-assign]


def test_accepted_tokens_run_again_with_the_next_forward(model: PreTrainedModel) -> None:
    counted, text = Counted(model), some_tokens(14)
    counted.runner.prefill(0, text[:5])
    counted.runner.run(0, [*text[5:8], 1, 2])
    counted.runner.rewind(0, 8)
    found = counted.runner.run(0, text[8:11]).logits
    assert_close(found, fresh(model, text[:11])[8:])
    # All of it was kept: nothing is run again.
    assert_close(counted.runner.run(0, text[11:]).logits, fresh(model, text)[11:])
    assert counted.shapes == [(1, 5), (1, 5), (1, 3 + 3), (1, 3)]


def test_many_tokens_run_again_apart_and_are_kept(model: PreTrainedModel) -> None:
    counted, text = Counted(model), some_tokens(50)
    counted.runner.prefill(0, text[:4])
    for at in range(4, 4 + 3 * 14, 3):  # three of five are kept each time
        found = counted.runner.run(0, [*text[at : at + 3], 1, 2]).logits[:3]
        assert_close(found, fresh(model, text[: at + 3])[at:])
        counted.runner.rewind(0, at + 3)
    again = [rows - 5 for _, rows in counted.shapes[1:] if rows != 18]
    assert again == [0, 3, 6, 9, 12, 15, 0, 3, 6, 9, 12, 15, 0, 3]
    assert counted.shapes.count((1, 18)) == 2
    assert 15 <= MOST_REPLAYED < 18


def test_old_states_are_let_go_and_their_text_is_run_again(model: PreTrainedModel) -> None:
    counted, text = Counted(model), some_tokens(70)
    for token in text:
        counted.runner.run(0, [token])
    assert len(counted.runner._states[0].snapshots) == KEPT + 1
    counted.runner.rewind(0, 30)
    assert_close(counted.runner.run(0, text[30:33]).logits, fresh(model, text[:33])[30:])


def test_branches_grow_in_one_forward_from_states_of_their_own(model: PreTrainedModel) -> None:
    counted, text = Counted(model), some_tokens(6)
    counted.runner.prefill(0, text[:4])
    counted.runner.run(0, text[4:5])
    counted.runner.run(0, text[5:])
    counted.shapes.clear()
    branches = counted.runner.fork(0, [6, 5, 4])
    for token in (7, 8):
        found = counted.runner.step(0, dict.fromkeys(branches, token))
    for row, fork in zip(found, (6, 5, 4), strict=True):
        assert_close(row[None], fresh(model, [*text[:fork], 7, 8])[-1:])
    assert counted.shapes == [(3, 1)] * 2
    counted.runner.keep(0, branches[1])
    assert_close(counted.runner.run(0, [9]).logits, fresh(model, [*text[:5], 7, 8, 9])[-1:])
    assert counted.shapes[2:] == [(1, 1)]


def test_hidden_states_are_those_of_the_new_tokens(model: PreTrainedModel) -> None:
    text = some_tokens(9)
    with torch.inference_mode():
        states = model(torch.tensor([text]), use_cache=False, output_hidden_states=True)
    counted = Counted(model)
    counted.runner.run(0, text[:5])
    counted.runner.rewind(0, 4)
    out = counted.runner.run(0, text[4:], 2, [LookaheadRow(1, 9, [])])
    assert out.hidden is not None
    assert_close(out.hidden, torch.stack([h[0, 4:] for h in states.hidden_states[-2:]]))
    assert out.lookahead_rows is None


def test_padding_is_refused(model: PreTrainedModel) -> None:
    runner = RecurrentRunner(model)
    assert invariant_from(runner) is None
    assert Padding.pick("auto", None, states=True) == NATURAL
    message = refusal(UnsupportedModelError, lambda: validate(runner, "odd", Padding.fixed(8)))
    assert message == (
        "odd has recurrent layers, whose states would take in padding: leave padding out"
    )


def test_a_round_commits_as_many_tokens_as_with_a_dense_pair() -> None:
    """At the same acceptance, which is 1 where the draft is the target."""
    options: dict[str, Any] = {"gamma": 4, "epsilon": 0.0, "branching": "point"}
    options |= {"speculate": "always", "retrieval": False, "method": "specbranch"}
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    for model in (tiny_model("llama"), family("lfm2").model(), family("qwen3_5_text").model()):
        with LLM.from_models(model, model, **options) as llm:
            [done] = llm.generate([some_tokens(8)], params)
        assert done.metrics.mean_accepted_length == 5.0


@pytest.mark.parametrize("kind", RECURRENT)
def test_packed_models_are_accepted(kind: str) -> None:
    runner = RecurrentRunner(family(kind).model())
    runner.pack()
    validate(runner, kind)
