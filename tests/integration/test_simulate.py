"""What-if timing: profiles, predictions on a virtual clock, and recorded acceptance.

Nothing here depends on a real clock: what is measured is measured on virtual executors, whose
costs are
known.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch import LLM, SamplingParams
from specbranch.bench.contenders import LABELS, PAPER, PLAIN, SPECBRANCH, Pair
from specbranch.bench.theory import pearl_speedup, specbranch_speedup, sps_speedup
from specbranch.cli import main
from specbranch.errors import InputError
from specbranch.executors.latency_profile import Devices, ModelLatency, Profile
from specbranch.executors.virtual import SHARED_CPU, VirtualClock, VirtualExecutor
from specbranch.simulate.measure import measure
from specbranch.simulate.predict import predict, sweep
from specbranch.simulate.profiles import builtin, find_profile
from specbranch.simulate.rounds import (
    Course,
    compare_rounds,
    pearl_rounds,
    plain_rounds,
    read_recordings,
    specbranch_rounds,
    sps_rounds,
)
from tests.integration.executor_workers import Echo, ForwardsRequest
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("small_pair")

ALONE = Profile(
    ModelLatency({1: 0.014, 16: 0.030}, 2e-4, ModelLatency({1: 0.010, 16: 0.020, 512: 0.2}, 1e-4)),
    ModelLatency({1: 0.0018, 12: 0.0040}, 5e-4, ModelLatency({1: 0.0016, 12: 0.0030}, 3e-4)),
    devices=Devices("core", 2, 2, 2),
    source="made up",
)
SHORT = SamplingParams(max_tokens=40, ignore_eos=True)


PROMPTS = [[5, 9, 2, 33, 17], [40, 3, 8]]


def pair(profile: Profile) -> LLM:
    """Tiny models on virtual executors; the draft is the target with some noise."""
    draft = tiny_model("llama")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in draft.parameters():
            weights += 0.02 * torch.randn(weights.shape, generator=generator)
    return LLM.from_models(tiny_model("llama"), draft, executor="virtual", profile=profile)


costs = st.builds(
    ModelLatency,
    st.dictionaries(st.integers(1, 4096), st.floats(1e-9, 1e3), min_size=1, max_size=5),
    st.floats(0, 1),
)
both_ways = st.builds(replace, costs, alone=st.none() | costs)
profiles = st.builds(
    Profile,
    both_ways,
    both_ways,
    st.none() | st.floats(1e-9, 1e3),
    st.builds(Devices, st.just("GPU"), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.text(),
    st.dictionaries(st.text(), st.text(min_size=1), max_size=3),
)


@settings(max_examples=30, deadline=None)
@given(profile=profiles)
def test_profiles_survive_being_saved(tmp_path_factory: pytest.TempPathFactory, profile: Profile):
    file = tmp_path_factory.mktemp("profile") / "profile.json"
    profile.save(file)
    assert Profile.load(file) == profile


def test_a_profile_of_two_lanes_and_nothing_else_is_one(tmp_path: Path):
    file = tmp_path / "old.json"
    draft = {"forward": {"1": 0.002}, "call": 0.0002}
    file.write_text(json.dumps({"target": {"forward": {"1": 0.012, "16": 0.026}}, "draft": draft}))
    assert Profile.load(file) == Profile(
        ModelLatency({1: 0.012, 16: 0.026}), ModelLatency({1: 0.002}, 0.0002)
    )


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"devices": {"unit": "GPU", "plain": 0}}, "1 device or more"),
        ({"devices": {"gpus": 2}}, "is no profile"),
        ({"plain": "fast"}, "is no profile"),
        ({"target": {"forward": {"1": 1}, "call": -1}}, "needs seconds"),
        ({"target": {"forward": {"1": 1}, "alone": {"forward": {"1": -1}}}}, "needs seconds"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, changed: dict[str, object], complaint: str):
    file = tmp_path / "profile.json"
    executors = {"target": {"forward": {"1": 1}}, "draft": {"forward": {"1": 1}}}
    file.write_text(json.dumps(executors | changed))
    with pytest.raises(InputError, match=complaint):
        Profile.load(file)


def test_a_lane_is_faster_alone():
    executor = VirtualExecutor(
        Echo, "target", ModelLatency({1: 1.0}, 0.5, ModelLatency({1: 0.25})), VirtualClock()
    )
    ends = []
    for share in (SHARED_CPU.alone, SHARED_CPU.target, SHARED_CPU.alone):
        executor.set_affinity(share)
        call = executor.submit(ForwardsRequest((1, 1)))
        call.result()
        ends.append(call.span.seconds)
    assert ends == [0.5, 2.5, 0.5]


def test_built_in_profiles_are_those_of_their_sources():
    found = builtin()
    assert len(found) == 8
    for name, profile in found.items():
        assert find_profile(name) == profile
        assert "derived" in profile.source and "gpt-fast" in profile.source
        assert profile.target.valid and profile.draft.valid
    assert 1 / found["68m-7b"].target.seconds(1) == pytest.approx(104.9)
    assert 1 / found["68m-7b-eager"].target.seconds(1) == pytest.approx(25.5)
    # Two GPUs for 70B, which gpt-fast measured, too: 21.32 tokens/s.
    assert 1 / found["8b-70b"].target.seconds(1) == pytest.approx(21.32, rel=0.05)
    # A dozen branches take as long as one; a long prompt does not.
    draft = found["1.3b-33b"].draft
    assert draft.seconds(12) == draft.seconds(1) < draft.seconds(4096)


def test_measuring_finds_the_costs_that_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("specbranch.simulate.measure.ENOUGH", 1)
    with pair(ALONE) as llm:
        found = measure(Pair(llm, llm), PROMPTS[:1], tokens=60, repeats=1)
    assert found.plain == pytest.approx(0.0101, rel=1e-3)
    assert found.target.alone and found.draft.alone and ALONE.target.alone
    for n in (2, 4, 8):  # on a virtual clock what a call adds is within its span
        beside = found.target.seconds(n) + found.target.call
        assert beside == pytest.approx(ALONE.target.seconds(n) + 2e-4, rel=0.01)
        alone = found.target.alone.seconds(n) + found.target.alone.call
        assert alone == pytest.approx(ALONE.target.alone.seconds(n) + 1e-4, rel=0.01)
    for k in (1, 6, 12):
        assert found.draft.seconds(k) == pytest.approx(ALONE.draft.seconds(k), rel=0.05)
    assert found.draft.call == pytest.approx(5e-4, rel=0.3)
    assert found.draft.alone.seconds(1) == pytest.approx(0.0016, rel=0.05)
    reading = ALONE.target.alone.seconds(64)
    assert found.target.alone.seconds(64) == pytest.approx(reading, rel=0.05)
    assert set(found.machine) >= {"cpu", "target", "draft", "versions"}


def test_measuring_needs_two_models_at_work():
    with (
        LLM.from_models(tiny_model("llama"), tiny_model("llama")) as llm,
        pytest.raises(InputError, match="use --executors process or thread"),
    ):
        measure(Pair(llm, llm), [[1, 2]])
    with (
        LLM.from_models(tiny_model("llama"), None) as llm,
        pytest.raises(InputError, match="give a draft model"),
    ):
        measure(Pair(llm, llm), [[1, 2]])


def test_a_prediction_is_the_same_every_time():
    runs = []
    for _ in range(2):
        with pair(ALONE) as llm:
            runs.append(predict(llm, ALONE, PROMPTS, SHORT, (4,)))
    first, second = runs
    assert first == second
    plain, sps, pearl, ours, paper = first
    assert [row.label for row in first] == [
        LABELS[PLAIN],
        "SpS, γ = 4",
        "PEARL, γ = 4",
        LABELS[SPECBRANCH],
        LABELS[PAPER],
    ]
    assert plain.over_plain == plain.accepted == plain.per_device == 1
    # Alone the target takes 10 ms and 0.1 a token, and reads the prompts before that.
    assert 0.8 / 0.0101 < plain.tokens_per_second < 1 / 0.0101
    assert all(row.devices == 2 for row in first)
    assert ours.accepted > 1 < sps.accepted and pearl.accepted > 1 and paper.accepted > 1


def test_the_draft_has_devices_of_its_own():
    profile = replace(Profile.of_ratio(8), devices=Devices("GPU", 2, 3, 4))
    with pair(profile) as llm:
        rows = predict(llm, profile, PROMPTS[:1], SHORT, (4,))
    assert [row.devices for row in rows] == [2, 3, 4, 4, 4]
    for row in rows:
        assert row.per_device == pytest.approx(row.over_plain * 2 / row.devices)


def test_plain_decoding_has_its_own_width():
    speeds = []
    for plain in (None, 0.005):
        profile = replace(ALONE, plain=plain)
        with pair(profile) as llm:
            speeds.append(predict(llm, profile, PROMPTS[:1], SHORT, (4,))[0].tokens_per_second)
    assert 40 / speeds[0] - 40 / speeds[1] == pytest.approx(40 * (0.010 - 0.005))


def test_a_sweep_is_a_grid():
    found = sweep(
        pair,
        [(c, Profile.of_ratio(c)) for c in (2.0, 16.0)],
        [2, "auto"],
        lambda llm: PROMPTS[:1],
        SHORT,
    )
    assert (found.cs, found.gammas) == ([2.0, 16.0], [2, "auto"])
    (slow_short, slow), (fast_short, fast) = found.ratios
    assert fast > slow and fast > fast_short and slow_short > 0


ALPHAS = (0.0, 0.3, 0.6, 0.9)
SHAPES = ((1, 4.0), (3, 10.0), (8, 8.0))


def recorded(alpha: float, length: int = 60_000) -> list[int]:
    """Counts at every position of a text whose drafts are right with probability α each."""
    right = np.random.default_rng(int(100 * alpha)).random(length) < alpha
    counts = np.ones(length, dtype=int)
    for place in range(length - 2, -1, -1):
        counts[place] = counts[place + 1] + 1 if right[place] else 1
    return counts.tolist()


def over_plain(course: Course, recording: list[int], profile: Profile) -> float:
    plain = plain_rounds([recording], profile).metrics
    assert course.metrics.committed == plain.committed == len(recording)
    return course.metrics.tokens_per_second / plain.tokens_per_second


@pytest.mark.parametrize(("alpha", "shape"), list(itertools.product(ALPHAS, SHAPES)))
def test_recorded_rounds_are_as_fast_as_the_theory_says(alpha: float, shape: tuple[int, float]):
    gamma, c = shape
    recording, profile = [recorded(alpha)], Profile.of_ratio(c, 0.1)
    error = 0.03  # five standard errors of 60,000 tokens in chains of up to nine
    sps = over_plain(sps_rounds(recording, profile, gamma), recording[0], profile)
    assert sps == pytest.approx(sps_speedup(alpha, gamma, c), rel=error)
    pearl = over_plain(pearl_rounds(recording, profile, gamma), recording[0], profile)
    assert pearl == pytest.approx(pearl_speedup(alpha, gamma, c), rel=error)
    for hit, branches in ((alpha, 1), (0.8, 4)):
        course = specbranch_rounds(recording, profile, gamma, hit, branches)
        expected = specbranch_speedup(alpha, gamma, c, hit, branches, 0.1)
        assert over_plain(course, recording[0], profile) == pytest.approx(expected, rel=error)


def test_recorded_rounds_take_the_best_gamma():
    recording, profile = [recorded(0.7, 5000)], Profile.of_ratio(10)
    rows = compare_rounds(recording, profile, hit=0.8, branches=4)
    assert [row.label.split(",")[0] for row in rows] == [
        LABELS[PLAIN],
        "SpS",
        "PEARL",
        "SpecBranch",
    ]
    for gamma in (2, 9):
        fixed = compare_rounds(recording, profile, 0.8, 4, gamma)
        for row, best in zip(fixed[1:], rows[1:], strict=True):
            assert row.label.endswith(f"γ = {gamma}")
            assert row.over_plain <= best.over_plain
    for row in rows:
        assert 0 <= row.rollback <= 1 and 0 <= row.idle < 1 and math.isfinite(row.accepted)


def test_a_recording_is_a_column_of_a_file(tmp_path: Path):
    file = tmp_path / "traces.jsonl"
    file.write_text(
        '{"id": 1, "eagle": [3, 2, 1], "ngram": [1, 1, 1]}\n{"eagle": [], "ngram": []}\n'
    )
    assert read_recordings(file, "eagle") == [[3, 2, 1]]
    with pytest.raises(InputError, match=r"row 1: no column 'medusa' \(there are: eagle, ngram\)"):
        read_recordings(file, "medusa")
    for bad, complaint in (('{"eagle": [0]}', "1 or more"), ('{"eagle": []}', "no recorded")):
        file.write_text(bad + "\n")
        with pytest.raises(InputError, match=complaint):
            read_recordings(file, "eagle")


def test_simulate_prints_a_table_and_writes_the_figures(tmp_path: Path, capsys):
    file = tmp_path / "figures.json"
    arguments = ["simulate", "--c", "15", "--draft-ms", "2", "--branch-cost", "0.05"]
    arguments += ["--limit", "1", "--max-tokens", "16", "--gamma", "4", "--output", str(file)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for shown in (
        LABELS[PLAIN],
        "SpS, γ = 4",
        "PEARL, γ = 4",
        LABELS[SPECBRANCH],
        "1.00",
        "c = 15",
    ):
        assert shown in printed
    rows = json.loads(file.read_text())["predictions"]
    assert [row["devices"] for row in rows] == [1, 1, 2, 2, 2]
    # 15 forwards' worth of 2 ms a token, and one for the prompt.
    assert rows[0]["tokens_per_second"] == pytest.approx(16 / (17 * 0.030))


def test_simulate_draws_a_sweep(tmp_path: Path, capsys):
    pytest.importorskip("matplotlib")
    plot, file = tmp_path / "heat.svg", tmp_path / "heat.json"
    arguments = ["simulate", "--sweep-c", "4", "8", "--sweep-gamma", "2", "auto", "--limit", "1"]
    arguments += ["--max-tokens", "16", "--plot", str(plot), "--output", str(file)]
    assert main(arguments) == 0
    assert "auto" in capsys.readouterr().out
    assert plot.read_text().startswith("<?xml")
    assert np.shape(json.loads(file.read_text())["ratios"]) == (2, 2)


def test_simulate_lists_its_profiles(capsys):
    assert main(["simulate", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in builtin():
        assert name in printed
    assert "gpt-fast" in printed


def test_simulate_takes_recorded_acceptance(tmp_path: Path, capsys):
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps({"eagle": recorded(0.7, 400)}) + "\n")
    arguments = ["simulate", "--acceptance", str(file), "--profile", "8b-70b", "--hit", "0.8"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "PEARL" in printed and "trace.jsonl, eagle" in printed


def test_profile_writes_what_it_measured(tmp_path: Path, capsys):
    known, found = tmp_path / "known.json", tmp_path / "found.json"
    ALONE.save(known)
    arguments = ["profile", "--out", str(found), "--profile", str(known), "--limit", "1"]
    assert main([*arguments, "--max-tokens", "16", "--repeats", "1", "--max-model-len", "100"]) == 0
    assert "target, beside the draft" in capsys.readouterr().out
    assert Profile.load(found).target.seconds(4) == pytest.approx(
        ALONE.target.seconds(4) + 2e-4, rel=0.02
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["simulate"], "how fast are the models?"),
        (["simulate", "--profile", "h900"], "no profile 'h900': give a file, or one of 68m-7b"),
        (["simulate", "--c", "0"], "--c must be above 0 and finite, not 0.0"),
        (["simulate", "--c", "nan"], "--c must be above 0"),
        (["simulate", "--c", "8", "--draft-ms", "-1"], "--draft-ms must be above 0"),
        (["simulate", "--c", "8", "--branch-cost", "-1"], "--branch-cost must be 0 or more"),
        (["simulate", "--c", "8", "--profile", "68m-7b"], "leave out --c"),
        (["simulate", "--c", "8", "--limit", "0"], "--limit must be 1 or more"),
        (["simulate", "--c", "8", "--plot", "x.svg"], "give --sweep-c"),
        (["simulate", "--sweep-c", "8", "--plot", "x.pdf"], "a plot is .svg or .png, not 'x.pdf'"),
        (["simulate", "--sweep-c", "0"], "--sweep-c must be above 0"),
        (["simulate", "--sweep-c", "8", "--sweep-gamma", "0"], "gamma must be 1 or more"),
        (["simulate", "--sweep-c", "8", "--c", "8"], "--sweep-c takes the place of"),
        (["simulate", "--c", "8", "--draft", "none"], "needs a draft model"),
        (["simulate", "--c", "8", "--output", "no/such/x.json"], "no folder"),
        (["simulate", "--c", "8", "--acceptance", "no.jsonl"], "cannot read no.jsonl"),
        (["simulate", "--c", "8", "--acceptance", "no.jsonl", "--hit", "2"], "--hit must be"),
        (["simulate", "no.jsonl", "--c", "8"], "cannot read no.jsonl"),
        (["profile", "--out", "no/such/x.json"], "no folder"),
        (["profile", "--out", "x.json", "--repeats", "0"], "--repeats must be 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments: list[str], complaint: str):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
