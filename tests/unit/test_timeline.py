"""Spans, idle time and drawings of rounds whose times are made by hand; and the commands."""

import json
from xml.etree import ElementTree

import pytest

from specbranch.cli import main
from specbranch.engine import timeline
from specbranch.errors import InputError
from specbranch.executors.base import Span
from specbranch.executors.virtual import Profile
from specbranch.metrics import Round

ROUNDS = [
    # The draft drafts from 0 to 2, then both work; the draft is done before the target.
    Round(
        draft_stage=True,
        chain=2,
        branches=3,
        branch_tokens=7,
        outcome="hit",
        tokens=[1, 2, 3],
        drafting=Span(10, 12, (1, 1)),
        branching=Span(12, 15, (1, 3, 3)),
        verification=Span(12, 16, (3,)),
        seconds=6,
    ),
    # Straight on, but the draft is late by 1.
    Round(
        chain=4,
        branches=1,
        branch_tokens=1,
        outcome="rollback",
        tokens=[4],
        branching=Span(16, 21, (1,)),
        verification=Span(16.5, 20, (5,)),
        seconds=5,
    ),
    Round(tokens=[5], drafting=Span(21, 23, (2,)), verification=Span(23, 27, (1,)), seconds=6),
]


def test_bars_are_the_calls_of_both_lanes_in_order():
    found = timeline.bars(ROUNDS)
    assert [(b.executor, b.kind, b.round) for b in found] == [
        ("draft", "draft", 0),
        ("draft", "branch", 0),
        ("target", "verify", 0),
        ("draft", "branch", 1),
        ("target", "verify", 1),
        ("draft", "draft", 2),
        ("target", "verify", 2),
    ]
    branching, verifying = found[1:3]
    assert (branching.start, branching.end, branching.tokens, branching.branches) == (12, 15, 7, 3)
    assert (verifying.tokens, verifying.committed, verifying.outcome) == (3, 3, "hit")


def test_idle_time_of_the_target():
    # From 16 to 27 it waits 0.5 and 3.
    assert timeline.target_idle([ROUNDS]) == pytest.approx(3.5 / 11)
    assert timeline.target_idle([ROUNDS], steady=True) == pytest.approx(0.5 / 4)
    # What lies between two generations belongs to neither.
    assert timeline.target_idle([ROUNDS, ROUNDS]) == pytest.approx(3.5 / 11)
    assert timeline.target_idle([[], ROUNDS[:1]]) == 0


def test_trace_for_perfetto(tmp_path):
    file = tmp_path / "trace.json"
    timeline.save({"SpecBranch": ROUNDS, "again": ROUNDS}, file)
    events = json.loads(file.read_text())["traceEvents"]
    names = [e["args"]["name"] for e in events if e["ph"] == "M"]
    assert names == ["SpecBranch", "target", "draft", "again", "target", "draft"]
    calls = [e for e in events if e["ph"] == "X" and e["pid"] == 0]
    assert len(calls) == 7
    branch = next(e for e in calls if e["name"] == "branch")
    assert (branch["ts"], branch["dur"], branch["tid"]) == (2e6, 3e6, 1)
    assert branch["args"] == {
        "round": 0,
        "outcome": "hit",
        "tokens": 7,
        "branches": 3,
        "committed": 3,
    }


def test_charts(tmp_path):
    for name in ("chart.svg", "chart.png"):
        timeline.save({"SpecBranch": ROUNDS, "nothing yet": []}, tmp_path / name)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse(tmp_path / "chart.svg").getroot()
    assert drawn.tag.endswith("svg")
    # One bar for each call, one for the time behind them, and the legend's.
    assert len(drawn.findall(".//{*}path")) > len(timeline.bars(ROUNDS))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("t.pdf", "a timeline is .svg, .png or .json"), ("no/t.svg", "cannot write .*: no folder")],
)
def test_where_no_timeline_can_be_written(tmp_path, name, complaint):
    with pytest.raises(InputError, match=complaint):
        timeline.check_file(tmp_path / name)


@pytest.fixture
def profile(tmp_path):
    file = tmp_path / "profile.json"
    Profile.of_ratio(8, branch_cost=0.03).save(file)
    return str(file)


def test_compare_draws_every_method(capsys, tmp_path, profile):
    file = tmp_path / "compare.json"
    arguments = ["--profile", profile, "--max-tokens", "12", "--timeline", str(file)]
    assert main(["compare", "def quicksort(xs):", *arguments]) == 0
    out = capsys.readouterr().out
    events = json.loads(file.read_text())["traceEvents"]
    labels = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert labels == ["plain decoding", "SpS, γ = 8", "PEARL, γ = 8", "SpecBranch"]
    assert all(label in out for label in labels)


def test_generate_draws_its_timeline(capsys, tmp_path, profile):
    file = tmp_path / "t.svg"
    arguments = ["--profile", profile, "--max-tokens", "12", "--timeline", str(file)]
    assert main(["generate", "def quicksort(xs):", *arguments]) == 0
    assert "target executor idle" in capsys.readouterr().err
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["generate", "x", "--timeline", "t.gif"], "a timeline is .svg, .png or .json"),
        (["generate", "x", "--executor", "fast"], "unknown executors 'fast': use auto, process"),
        (["generate", "x", "--target-cores", "x"], "cores must be a list such as 0-3,6, not 'x'"),
        (["generate", "x", "--profile", "none.json"], "cannot read none.json: No such file"),
        (["generate", "x", "--gamma", "fast"], "gamma must be 1 or more, or auto, not 'fast'"),
        (["compare", "x", "--draft", "none"], "a comparison of methods needs a draft model"),
        (["compare", "x", "--temperature", "1"], "sampling by several methods needs --seed"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, complaint):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
