"""At a fixed padding, and at `auto`, logits do not depend on how a text is cut into forwards."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.models.padding import MAX_QUERY_LENGTH, NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.sequence_state import LookaheadRow
from specbranch.models.validation import invariant_from, same_with
from tests.forwards import (
    CAPACITY,
    FIXED,
    WIDTH,
    assert_close,
    fresh,
    model_of,
    some_tokens,
)
from tests.tiny import ARCHITECTURES, VOCABULARY, tiny_model

pytestmark = pytest.mark.usefixtures("small_blocks")


@dataclass(frozen=True)
class Verified:
    """A target forward as a decoder asks for it: tokens of the text, then tokens it rejects."""

    kept: int
    rejected: int = 0


TEXT = some_tokens(40)
PROMPT = 5
DTYPES = [torch.float32, torch.bfloat16]


def read(
    model: PreTrainedModel, padding: Padding, rounds: Iterable[Verified]
) -> tuple[Tensor, Tensor]:
    """Logits and last hidden states of `TEXT` after its prompt, run in these rounds.

    Once the rounds are over, the rest of the text follows in one run.
    """
    runner = CausalRunner(model)
    runner.open(0, len(TEXT) + 2 * WIDTH, padding)
    runner.prefill(0, TEXT[:PROMPT])
    at = PROMPT
    logits, hidden = [], []
    for verified in rounds:
        new = TEXT[at : at + verified.kept]
        # What is rejected differs from the text, so that traces of it in the cache would show.
        wrong = [(token + 1) % VOCABULARY for token in reversed(TEXT)][: verified.rejected]
        out = runner.run(0, new + wrong, layers=1)
        at += len(new)
        runner.rewind(0, at)
        assert out.hidden is not None
        assert (out.logits.dtype, out.hidden.dtype) == (torch.float32, model.dtype)
        logits.append(out.logits[: len(new)])
        hidden.append(out.hidden[0, : len(new)])
        if at == len(TEXT):
            break
    else:
        return read(model, padding, [*rounds, Verified(len(TEXT) - at)])
    return torch.cat(logits), torch.cat(hidden)


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@functools.cache
def one_at_a_time(architecture: str, dtype: torch.dtype, padding: Padding) -> tuple[Tensor, Tensor]:
    return read(model_of(architecture, dtype=dtype), padding, [Verified(1)] * len(TEXT))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    rounds=st.lists(
        st.builds(Verified, st.integers(1, 2 * WIDTH), st.integers(0, 2 * WIDTH)), max_size=20
    )
)
@example(rounds=[Verified(WIDTH)] * 5)
@example(rounds=[Verified(1, WIDTH - 1)] * 35)
def test_fixed_width_is_bit_exact(
    architecture: str, dtype: torch.dtype, rounds: list[Verified]
) -> None:
    """However the text is cut into runs, and whatever was rejected in between."""
    chunked = read(model_of(architecture, dtype=dtype), FIXED, rounds)
    assert same(chunked, one_at_a_time(architecture, dtype, FIXED))


LONG_TEXT = some_tokens(224)
CUTS = {"one at a time": [1], "chunks": [7], "mixed": [1, 8, 3, 16, 2, 5, 15, 1, 1, 24, 4]}


@pytest.mark.parametrize("tokens", [4, 8, 16, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_fixed_padding_is_bit_exact_far_into_a_text(
    architecture: str, dtype: torch.dtype, tokens: int
) -> None:
    """In every dtype for which it is claimed, over the blocks that users have."""
    runner = CausalRunner(model_of(architecture, dtype=dtype))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specbranch.models.runner.BLOCK", 256)
        for name, cut in CUTS.items():
            runner.open(0, len(LONG_TEXT), Padding.fixed(tokens))
            rows, at = [], 0
            for size in itertools.cycle(cut):
                if at >= len(LONG_TEXT):
                    break
                rows.append(runner.run(0, LONG_TEXT[at : at + size]).logits)
                at += size
            runner.close(0)
            found[name] = torch.cat(rows)
    assert torch.equal(found["chunks"], found["one at a time"])
    assert torch.equal(found["mixed"], found["one at a time"])


def test_natural_widths_round_differently() -> None:
    """The comparison above can fail: without the fixed padding it does, or there is no need of
    it."""
    chunks = [Verified(WIDTH)] * 5
    different = [
        not same(
            read(model_of(architecture, dtype=dtype), NATURAL, chunks),
            one_at_a_time(architecture, dtype, NATURAL),
        )
        for architecture in ("llama", "gpt2")
        for dtype in DTYPES
    ]
    assert any(different)


@functools.cache
def packed(architecture: str, dtype: torch.dtype) -> CausalRunner:
    runner = CausalRunner(tiny_model(architecture, dtype=dtype))
    runner.pack()
    return runner


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cheapest_width_is_bit_exact(architecture: str, dtype: torch.dtype) -> None:
    """Whatever it is on this machine, for packed weights and for others."""
    rounds = [Verified(3), Verified(1, 4), Verified(7), Verified(2, 1), Verified(16)]
    for runner in (packed(architecture, dtype), CausalRunner(model_of(architecture, dtype=dtype))):
        padding = Padding.pick("auto", invariant_from(runner))
        one_by_one = read(runner.model, padding, [Verified(1)] * len(TEXT))
        assert same(read(runner.model, padding, rounds), one_by_one)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_changes_nothing_but_speed(architecture: str) -> None:
    runner = packed(architecture, torch.float32)
    plain = model_of(architecture)
    assert_close(fresh(runner.model, TEXT), fresh(plain, TEXT))
    assert runner.parameters == plain.num_parameters()


def rounding(
    otherwise: Callable[[int, int], bool], monkeypatch: pytest.MonkeyPatch
) -> CausalRunner:
    """Of a model that rounds otherwise for some numbers of tokens and places of the first one."""
    model = tiny_model("llama")
    forward = model.forward

    def meddled(input_ids: Tensor, position_ids: Tensor, **options: Any) -> Any:
        out = forward(input_ids, position_ids=position_ids, **options)
        places = position_ids[0].tolist()
        out.logits = out.logits * (1 + 1e-6 * otherwise(len(places), places[0]))
        return out

    monkeypatch.setattr(model, "forward", meddled)
    return CausalRunner(model)


@pytest.mark.parametrize(("least", "possible"), [(0, {1, 4, 8}), (7, {8}), (12, set())])
def test_kernels_that_are_not_batch_invariant_are_found_out(
    least: int, possible: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = rounding(lambda tokens, place: tokens < least, monkeypatch)
    assert invariant_from(runner) in {*possible, None}
    assert not runner._states


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 9, 14, 23, MAX_QUERY_LENGTH])
def test_kernels_that_round_otherwise_far_into_a_text_are_found_out(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specbranch.models.runner.BLOCK", 256)
    runner = rounding(lambda tokens, place: tokens == size and place >= 224, monkeypatch)
    assert invariant_from(runner) in {None, *(least for least in (4, 8) if least > size)}


def test_no_trial_is_believed_in_16_bits() -> None:
    """Rounding to them hides most of what another order of summing does."""
    assert invariant_from(CausalRunner(tiny_model("llama", dtype=torch.bfloat16))) is None


def test_forwards_longer_than_was_tried_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = rounding(lambda tokens, place: tokens > MAX_QUERY_LENGTH, monkeypatch)
    monkeypatch.setattr("specbranch.models.runner.BLOCK", 4 * MAX_QUERY_LENGTH)
    padding = Padding.pick("auto", 1)
    runner.open(0, 2 * MAX_QUERY_LENGTH, padding)
    found = runner.run(0, some_tokens(2 * MAX_QUERY_LENGTH)).logits
    assert_close(found, fresh(tiny_model("llama"), some_tokens(2 * MAX_QUERY_LENGTH)))
    runner.rewind(0, MAX_QUERY_LENGTH)
    again = runner.run(0, some_tokens(2 * MAX_QUERY_LENGTH)[MAX_QUERY_LENGTH:]).logits
    assert torch.equal(again, found[MAX_QUERY_LENGTH:])


def test_a_sum_that_is_divided_among_threads_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    other = CpuAffinity(before + 1)
    runner = rounding(lambda tokens, place: torch.get_num_threads() == other.threads, monkeypatch)
    assert same_with(CpuAffinity(before), runner, FIXED)
    assert not same_with(other, runner, FIXED)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_asides_leave_the_logits_bit_identical(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture, dtype=dtype)
    runner = CausalRunner(model)

    def text(asked: bool) -> tuple[Tensor, set[bool]]:
        """Logits of a text in runs of three, and whether lookahead_rows were run with them."""
        runner.open(0, CAPACITY, FIXED)
        rows, taken = [], set()
        for start in range(0, 42, 3):
            lookahead_rows = (
                [LookaheadRow(9, start + 1, []), LookaheadRow(3, start + 2, [0])] if asked else []
            )
            out = runner.run(0, some_tokens(42)[start : start + 3], lookahead_rows=lookahead_rows)
            rows.append(out.logits)
            taken.add(out.lookahead_rows is not None)
        return torch.cat(rows), taken

    (alone, never), (beside, sometimes) = text(False), text(True)
    assert torch.equal(alone, beside)
    # There is no room for them at the end of a block.
    assert (never, sometimes) == ({False}, {False, True})
