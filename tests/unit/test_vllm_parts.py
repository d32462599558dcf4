"""The parts of the vLLM integration, each alone and without vLLM."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specbranch.cli import main
from specbranch.errors import InputError
from specbranch.integrations.vllm import versions
from specbranch.integrations.vllm.chain_length import LEAST, ChainLength
from specbranch.integrations.vllm.drafter_loop import params_of
from specbranch.integrations.vllm.link import drafter_environment
from specbranch.integrations.vllm.messages import Sampling
from specbranch.integrations.vllm.metrics import FOLDER, Metrics, read
from specbranch.integrations.vllm.outcomes import Kind, Prepared, match
from specbranch.integrations.vllm.sampling_fix import expand, mend
from specbranch.integrations.vllm.settings import Settings
from specbranch.integrations.vllm.waiting import TRIALS, WaitPolicy
from specbranch.sampling_params import SamplingParams
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import BranchText, CommitUpdate, DraftText, OpenText
from tests.tables import TableRunner, random_table


@pytest.mark.parametrize(
    ("committed", "kind", "accepted", "survivor"),
    [
        ([1, 2, 3, 9], Kind.HIT, 3, 0),
        ([1, 7], Kind.HIT, 1, 1),
        ([1, 7, 8], Kind.HIT, 1, 1),  # the branch was late: its continuation is committed, too
        ([1, 7, 5], Kind.MISS, 1, None),
        ([4], Kind.MISS, 0, None),
        ([1, 2], Kind.CUT, 2, None),
        ([1, 2, 3], Kind.CUT, 3, None),
    ],
)
def test_an_outcome_is_matched_by_tokens(
    committed: list[int], kind: Kind, accepted: int, survivor: int | None
) -> None:
    branches = [Prepared(3, [9, 1]), Prepared(1, [7, 8]), Prepared(0, [5])]
    found = match([1, 2, 3], committed, branches, fresh=False)
    assert (found.kind, found.accepted, found.survivor) == (kind, accepted, survivor)
    assert found.kept + len(found.tokens) == len(committed)


def test_an_outcome_before_any_branch_is_late_and_the_first_one_is_fresh() -> None:
    assert match([], [1], [], fresh=False).kind is Kind.LATE
    assert match([], [1], [], fresh=True).kind is Kind.FRESH


def test_settings_come_from_the_configuration_and_the_environment_takes_precedence() -> None:
    given = {"specbranch": {"draft": "x", "k_max": 4, "enforce_eager": True}}
    environment = {"SPECBRANCH_VLLM_K_MAX": "6", "SPECBRANCH_VLLM_WAIT": "0"}
    found = Settings.of(given, environment)
    assert (found.draft, found.k_max, found.wait, found.enforce_eager) == ("x", 6, 0.0, True)
    assert Settings.of({}, {"SPECBRANCH_VLLM_DRAFT": "y"}).draft == "y"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs a draft"),
        (None, "needs a draft"),
        ({"specbranch": "x"}, "must be an object"),
        ({"specbranch": {"draft": "x", "core": "1"}}, "did you mean cores?"),
        ({"specbranch": {"draft": "x", "k_max": 0}}, "k_max must be a whole number from 1, not 0"),
        ({"specbranch": {"draft": "x", "k_max": "many"}}, "k_max must be a whole number"),
        ({"specbranch": {"draft": "x", "timeout": "nan"}}, "timeout must be seconds"),
        ({"specbranch": {"draft": "x", "retrieval": "perhaps"}}, "must be true or false"),
        ({"specbranch": {"draft": "x", "speculate": "no"}}, "must be auto or always, not 'no'"),
        ({"specbranch": {"draft": ["x"]}}, "draft must be a text"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(given: Any, says: str) -> None:
    with pytest.raises(InputError, match="specbranch") as refused:
        Settings.of(given, {})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_chains_shrink_where_a_verified_token_costs_much() -> None:
    length = ChainLength()
    assert length.kept([0.9, 0.9, 0.1, 0.1], 4) == 3  # 0.9 · 0.9 · 0.1 · 0.1 is below the least
    assert length.kept([0.9, 0.9], 1) == 1
    assert length.kept([0.9], -1) == 0
    for tokens in (2, 4, 8, 2, 4, 8):  # a token more takes 1 ms, and 500 a second are committed
        length.observe(tokens, committed=3, seconds=0.004 + 0.0005 * (tokens - 4))
    assert length.least > LEAST
    for _ in range(30):
        for tokens in (16, 64):
            length.observe(tokens, committed=tokens // 2, seconds=0.001 * tokens)
    assert length.kept([0.3, 0.9], 4) == 0


def test_waiting_is_tried_and_then_pays_or_not() -> None:
    waiting = WaitPolicy(5, 0.05)
    tried = []
    for _ in range(TRIALS):
        tried.append(waiting.tokens(1, 1, rate=0.0))
        waiting.observe(tried[-1], 0.001 * tried[-1])
    assert len(set(tried)) == TRIALS
    assert waiting.tokens(1, 1, rate=100.0) == 5  # a token a millisecond; 0.1 are lost in it
    assert waiting.tokens(1, 8, rate=5000.0) == 0
    assert waiting.tokens(0, 1, rate=100.0) == 0
    assert 0 < waiting.deadline(5) <= 0.05
    for _ in range(50):
        waiting.learn(5, 0)  # what is waited for is never accepted
    assert waiting.tokens(1, 1, rate=300.0) == 0
    assert WaitPolicy(5, 0.0).tokens(1, 1, 1.0) == 0


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    values=st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=6, max_size=6),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_values_of_requests_are_expanded_to_their_tokens(
    counts: list[int], values: list[float]
) -> None:
    values = values[: len(counts)]
    ends = torch.tensor(counts).cumsum(0).int()
    found = expand(torch.tensor(values), ends, sum(counts), replace_from=0, replace_to=1)
    wanted = [v or 1.0 for v, count in zip(values, counts, strict=True) for _ in range(count)]
    assert found.tolist() == wanted


def broken_expand(x: Tensor, ends: Tensor, count: int, **options: int) -> Tensor:
    return x.new_ones(count)


def picky_top_k(logits: Tensor, k: Tensor, p: Tensor | None) -> Tensor:
    k.max()  # of nothing is an error
    return logits - 1


def test_what_fails_in_vllm_is_replaced_and_what_works_is_left() -> None:
    module = SimpleNamespace(expand_batch_to_tokens=broken_expand, apply_top_k_top_p=picky_top_k)
    assert mend(module) == ["expand_batch_to_tokens", "apply_top_k_top_p"]
    assert mend(module) == []
    nothing = torch.empty(0, 3)
    assert module.apply_top_k_top_p(nothing, torch.empty(0), None) is nothing
    assert module.apply_top_k_top_p(torch.ones(1, 3), torch.ones(1), None).sum() == 0
    assert mend(SimpleNamespace()) == []
    other = SimpleNamespace(expand_batch_to_tokens=lambda x: x)  # of another version
    assert mend(other) == []


def test_counters_of_several_proposers_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    counted = Metrics()
    counted["hit"] += 3
    counted["miss"] += 1
    counted["committed_tokens"] += 10
    assert (counted.hit_rate, counted.mean_acceptance_length) == (0.75, 2.5)
    counted.write(now=True)
    (tmp_path / "1.json").write_text(json.dumps({"hit": 2}))
    (tmp_path / "2.json").write_text("{")  # of one that ended in the middle
    assert read(tmp_path)["hit"] == 5
    monkeypatch.setenv(FOLDER, str(tmp_path / "gone"))
    counted.write(now=True)


def test_an_unknown_version_costs_one_warning_and_the_inside_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(versions, "vllm_version", lambda: "9.9.0")
    with caplog.at_level(logging.WARNING):
        assert versions.calling_runner(None, 100) is None
    assert len(caplog.records) == 1
    assert "9.9.0 was not tried" in caplog.text
    assert versions.is_known("0.32.0")
    assert not versions.is_known("0.320.0")


def test_a_requests_limit_is_its_own_or_the_contexts() -> None:
    params = SimpleNamespace(
        temperature=0.5, top_k=-1, top_p=0.9, min_p=0.0, repetition_penalty=1.1, max_tokens=20
    )
    found = versions.request_of(params, 10, 100)
    assert found is not None
    assert found.limit == 30
    assert found.sampling == Sampling(0.5, 0, 0.9, 0.0, 1.1)
    params.max_tokens = None
    unlimited = versions.request_of(params, 10, 100)
    assert unlimited is not None
    assert unlimited.limit == 100
    assert versions.request_of(None, 10, 100) is None


def test_the_drafters_environment_is_not_the_targets() -> None:
    worker = {
        "LD_PRELOAD": "x", "KMP_AFFINITY": "x", "OMP_NUM_THREADS": "1", "VLLM_X": "1",
        "HOME": "/h", "PYTHONPATH": "/theirs",
    }  # fmt: skip
    own, other = drafter_environment(worker, own=True), drafter_environment(worker, own=False)
    assert own.keys() - other.keys() == {"PYTHONPATH"}
    assert own["PYTHONPATH"] != "/theirs"
    assert other.keys() == {"HOME", "GOMP_SPINCOUNT"}


def test_certain_drafts_are_the_likeliest_tokens_also_where_a_text_is_sampled() -> None:
    table = random_table(1, 7)
    drafter = Drafter(TableRunner(table, 7))
    params = params_of(Sampling(temperature=0.8, top_k=3))
    assert params == SamplingParams(temperature=0.8, top_k=3).with_defaults({})
    drafter.open([OpenText(1, [1, 2], params, 50, 7, branch_tokens=50, certain=True)], read=False)
    assert drafter.read_on(1, 5) == 0
    [draft] = drafter.draft([DraftText(1, CommitUpdate(2), gamma=3)])
    path = [1, 2]
    for token, confidence in zip(draft.tokens, draft.confidences, strict=True):
        q = (table(tuple(path)) / 0.8).topk(3).values.softmax(-1)
        assert token == int(table(tuple(path)).argmax())
        assert confidence == pytest.approx(q[0].item(), abs=1e-5)
        path.append(token)
    assert draft.log_q is None
    [branches] = drafter.branch([BranchText(1, CommitUpdate(5), 20, 2, 4, "outcomes")])
    assert len({branch.outcome for branch in branches}) == 4


def test_the_line_for_vllm_names_both_models(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = str(model_folder)
    assert main(["vllm-args", "--target", name, "--draft", name, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"api_server --model {name}" in said
    assert '"model": "specbranch.vllm.Proposer", "num_speculative_tokens": 5' in said
    assert f'"draft": "{name}"' in said
    assert main(["vllm-args", "--target", name, "--draft", "no/where"]) == 2
    assert main(["vllm-args", "--target", "x.gguf", "--draft", name]) == 2
    assert "not a GGUF file" in capsys.readouterr().err


def test_vllms_side_loads_no_transformers() -> None:
    program = "import sys, specbranch.vllm; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
