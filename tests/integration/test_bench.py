"""The benchmark: suites, the run and its folder, figures, answers for Spec-Bench, the report."""

import json
from dataclasses import replace

import numpy as np
import pytest

from specbranch import LLM, SamplingParams
from specbranch.bench import paper
from specbranch.bench.contenders import (
    ALWAYS_ON,
    BIT_EXACT,
    BY_ITSELF,
    ON_SHARE,
    PAPER,
    PLAIN,
    SEQUENTIAL,
    SPECBRANCH,
)
from specbranch.bench.outside import outsiders
from specbranch.bench.overlap import overlap
from specbranch.bench.placement import Placement, a_device_each
from specbranch.bench.predicted import predictions
from specbranch.bench.run import Heat, RunFolder, Turn, converse, identical
from specbranch.bench.speed import ALL, Interval, disturbed, rates, ratio, speeds
from specbranch.bench.suites import PAPER_SUITES, Question, load_suite
from specbranch.cli import main
from specbranch.errors import InputError
from specbranch.executors.base import Span
from specbranch.executors.virtual import Profile
from specbranch.metrics import Fates, Metrics, Round
from specbranch.models.loader import ModelSpec
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.test_timeline import ROUNDS

pytestmark = pytest.mark.usefixtures("small_pair")

ROWS = [
    {"prompt": "def quicksort(xs):", "task_id": "code/1"},
    {"question": "How many?"},
    {"question_id": 7, "category": "writing", "turns": ["The city of", "And then?"]},
]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return file


@pytest.fixture
def profile(tmp_path):
    file = tmp_path / "profile.json"
    Profile.of_ratio(8, branch_cost=0.03).save(file)
    return str(file)


def test_suites_by_path_and_by_name(prompts):
    code, math, chat = load_suite(str(prompts))
    assert (code.suite, code.id, code.category) == ("mine", "code/1", "mine")
    assert math.turns == ("Question: How many?\nAnswer:",)
    assert (chat.id, chat.category, chat.turns) == (7, "writing", ("The city of", "And then?"))
    assert [q.id for q in load_suite(str(prompts), 2)] == ["code/1", 1]
    ten = load_suite("ten")
    assert len(ten) == 10
    assert len({q.id for q in ten}) == 10
    assert len(load_suite("ten", 4)) == 4
    named = prompts.rename(prompts.with_name("gsm8k.jsonl"))
    assert [q.suite for q in load_suite("gsm8k", 1, named.parent)] == ["gsm8k"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("imagenet", "no suite 'imagenet': give a .jsonl file or one of ten, humaneval"),
        ("none.jsonl", "cannot read none.jsonl"),
        ("humaneval", "or with --data the folder that has humaneval.jsonl"),
    ],
)
def test_suites_that_are_not_there(monkeypatch, name, complaint):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)  # as if not installed
    with pytest.raises(InputError, match=complaint):
        load_suite(name)


def heat(question, repeat=1, **answers):
    """A heat in which each contender takes as many seconds for its ten tokens."""
    question = Question("s", question, "s", ("x",)) if isinstance(question, int) else question
    turns = {
        name: [Turn("", [1] * 10, Metrics(10, 5, seconds=seconds), [Round(tokens=[1] * 10)])]
        for name, seconds in answers.items()
    }
    return Heat("draft", 0.0, repeat, question, turns)


def test_speed_is_a_mean_over_questions_and_its_ratio():
    heats = [
        heat(1, plain=10.0, ours=5.0),
        heat(2, plain=10.0, ours=2.0),
        heat(1, 2, plain=10.0, ours=5.0),
        heat(2, 2, plain=10.0, ours=3.0),
    ]
    heats.append(heat(1, 3, plain=10.0, ours=5.0))
    heats.append(heat(2, 3, plain=10.0, ours=900.0))  # disturbed: it must not count
    assert rates(heats, "ours").tolist() == [2.0, 10 / 3]
    plain, ours = speeds(heats, ["plain", "ours", "absent"])
    assert (ours.method, ours.questions) == ("ours", 2)
    assert ours.tokens_per_second == pytest.approx(8 / 3)
    assert (plain.over_plain.value, ours.accepted) == (1.0, 2.0)
    assert ours.over_plain.value == pytest.approx(8 / 3)
    (run,) = disturbed(heats, ["plain", "ours", "absent"])
    assert (run.heat, run.name, run.times) == (heats[-1], "ours", 300.0)


def test_every_placement_is_held_against_its_own_plain_decoding():
    on_each = {a_device_each(name): seconds for name, seconds in (("plain", 20.0), ("ours", 5.0))}
    heats = [heat(1, plain=10.0, ours=8.0, **on_each)]
    rows = speeds(heats, ["plain", "ours", *on_each], devices={a_device_each("ours"): 2})
    found = {(r.method, r.placement): (r.over_plain.value, r.per_device.value) for r in rows}
    assert found == {
        ("plain", Placement.EQUAL): (1.0, 1.0),
        ("ours", Placement.EQUAL): (1.25, 1.25),
        ("plain", Placement.EACH): (1.0, 1.0),
        ("ours", Placement.EACH): (4.0, 2.0),
    }


def test_two_questions_say_nothing_about_others():
    heats = [heat(1, plain=10.0, ours=5.0), heat(2, plain=10.0, ours=2.5)]
    _, ours = speeds(heats, ["plain", "ours"])
    assert ours.over_plain == Interval(3.0)  # two questions say nothing about others
    assert str(ours.over_plain) == "3.00"


def test_suites_count_alike_in_their_mean():
    other = Question("t", 1, "t", ("x",))
    heats = [heat(1, plain=10.0, ours=5.0), heat(2, plain=10.0, ours=5.0)]
    heats.append(heat(other, plain=10.0, ours=2.5))
    by_suite = {row.suite: row.over_plain.value for row in speeds(heats, ["ours"])}
    assert by_suite == {"s": 2.0, "t": 4.0, ALL: 3.0}


def test_intervals_cover_what_they_promise():
    """Of 300 samples of 30 questions, 95 % of the intervals hold the truth; 5 standard errors."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        plain = rng.uniform(8, 12, 30)
        ours = plain * rng.uniform(1, 3, 30)
        found = ratio([ours], [plain])
        held += found.low <= 2.0 <= found.high
    assert abs(held / 300 - 0.95) <= 5 * (0.95 * 0.05 / 300) ** 0.5


def test_overlap_of_hand_made_rounds():
    # A verification of n tokens takes n seconds by itself.
    alone = [Round(tokens=[1], verification=Span(0, n, (n,))) for n in (1, 5)]
    rounds = {ALWAYS_ON: ROUNDS, SEQUENTIAL: [Round(seconds=34.0)]}
    rounds |= dict.fromkeys(BY_ITSELF.values(), alone)
    answers = {name: [Turn("", [], Metrics(), done)] for name, done in rounds.items()}
    run = Heat("draft", 0.0, 1, Question("s", 1, "s", ("x",)), answers)
    found = overlap([run])
    # Steps of 4 / max(3, 4) and 5 / max(5, 3.5).
    assert found.round_time == 1.0
    assert (found.idle, found.steady_idle) == pytest.approx((3.5 / 11, 0.5 / 4))
    assert found.gain == 2.0
    # 4 s for 3 tokens, 3.5 s for 5 tokens.
    assert found.slow_down == pytest.approx((4 / 3 + 3.5 / 5) / 2)
    assert found.c == pytest.approx(3.75 / 3)
    del answers[SEQUENTIAL]
    assert overlap([run]) is None


def test_a_folder_gives_back_what_was_put_in(tmp_path):
    done = Round(tokens=[1, 2], fates=Fates(accepted=1), verification=Span(0, 1, (2,)))
    kept = heat(1, plain=1.0)
    kept.answers["ours"] = [Turn("é", [1, 2], Metrics(2, 1, fates=Fates(1)), [done])]
    folder = RunFolder(tmp_path / "out", {"limit": 1})
    folder.add(kept)
    with (tmp_path / "out" / "heats.jsonl").open("a") as file:
        file.write('{"draft": "dr')  # ended while it wrote
    again = RunFolder(tmp_path / "out", {"limit": 1})
    assert again.heats() == [kept]
    again.add(replace(kept, repeat=2))
    assert [h.repeat for h in again.heats()] == [1, 2]
    with pytest.raises(InputError, match="has a run with another limit: go on with the same"):
        RunFolder(tmp_path / "out", {"limit": 2})


def test_texts_that_differ_are_counted():
    one = heat(1, **{BIT_EXACT: 1.0, "ours": 1.0, "theirs": 1.0})
    one.answers["theirs"][0].token_ids[3] = 2
    assert identical([one], {"draft": ["ours", "theirs"]}) == (1, 2)


def test_later_turns_see_earlier_ones():
    with LLM(draft=None, executor="inline") as llm:

        class Plain:
            def generate(self, ids, params):
                asked.append(ids)
                return llm.generate([ids], params)[0]

        asked = []
        question = Question("s", 1, "chat", ("The city of", "And then?"))
        params = SamplingParams(max_tokens=4)
        turns = converse(Plain(), llm.tokenizer, question, params, 1000)
        assert [len(turn.token_ids) for turn in turns] == [4, 4]
        assert asked[1][: len(asked[0]) + 4] == asked[0] + turns[0].token_ids
        assert llm.tokenizer.decode(asked[1]).endswith("\n\nAnd then?\n\n")
        whole = asked[1]
        converse(Plain(), llm.tokenizer, question, params, 9)
        assert asked[-1] == whole[-9:]  # a long conversation loses its beginning


def test_a_model_that_can_be_talked_to_is_asked_every_question():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "w5 {{ messages[0]['content'] }} w6"
    llm = LLM.from_models(tiny_model("llama"), None, tokenizer)
    asked = []

    class Plain:
        def generate(self, ids, params):
            asked.append(ids)
            return llm.generate([ids], params)[0]

    question = Question("gsm8k", 1, "gsm8k", ("w1 w2",))
    converse(Plain(), tokenizer, question, SamplingParams(max_tokens=2), 100)
    assert asked == [[5, 1, 2, 6]]


def test_the_reference_of_transformers_decodes_the_same_text():
    with LLM(method="autoregressive", executor="inline") as llm:
        ids = llm.tokenizer("def quicksort(xs):")["input_ids"]
        params = SamplingParams(max_tokens=24)
        expected = llm.generate([ids], params)[0]
        specs = [ModelSpec(name, "auto", "cpu") for name in ("target", "draft")]
        plain, assisted, lookup = outsiders(llm, *specs)
        for one in (plain, assisted, lookup):
            found = one.generate(ids, params)
            tokens = found.outputs[0].token_ids
            assert tokens == expected.outputs[0].token_ids
            assert found.outputs[0].text == expected.outputs[0].text
            assert [t for done in found.rounds for t in done.tokens] == tokens
            assert found.metrics.target_calls == len(found.rounds)
        assert plain.generate(ids, params).metrics.mean_accepted_length == 1
        assert assisted.generate(ids, params).metrics.mean_accepted_length > 1.5
        with pytest.raises(InputError, match="the reference of transformers is greedy"):
            plain.generate(ids, SamplingParams(temperature=1.0, seed=1))


def bench(*arguments):
    return main(["bench", *map(str, arguments)])


def test_a_run_is_reported_and_gone_on_with(capsys, tmp_path, profile, prompts):
    out = tmp_path / "out"
    common = [prompts, "--profile", profile, "--max-tokens", 8, "--temperatures", 0, 1]
    common += ["--repeats", 1, "--prompt-tokens", 32, "--branch-costs", "--out", out]
    assert bench(*common) == 0
    # Nine methods besides plain decoding; 4 turns, 2 temperatures.
    assert "plain decoding's tokens: 72 of 72 texts" in capsys.readouterr().out
    rows = json.loads((out / "speeds.json").read_text())
    alone = ["lookup", "lookahead", "adaedl"]
    methods = [PLAIN, "sps-4", *alone, "sps-8", "pearl-8", SPECBRANCH, ALWAYS_ON, PAPER]
    assert {row["method"] for row in rows} == set(methods)
    assert {row["temperature"] for row in rows} == {0.0, 1.0}
    assert all(row["over_plain"]["value"] == 1 for row in rows if row["method"] == PLAIN)
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert sum(len(r["tokens"]) for r in rounds if r["method"] == SPECBRANCH) <= 4 * 2 * 8
    assert rounds[0]["suite"] == "mine"
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len(list((out / "figures").glob("*.svg"))) >= 5
    assert "<script" not in page
    assert "src=" not in page and 'href="http' not in page  # it needs nothing else
    text = (out / "report.md").read_text()
    assert "| SpecBranch |" in text
    assert "## What k branches cost" in text
    # Nothing is left to do, so no model is loaded, and the report is the same.
    assert bench(*common) == 0
    again = capsys.readouterr()
    assert "72 of 72" in again.out
    assert "texts:" not in again.err
    assert (out / "report.md").read_text() == text
    assert bench(*common, "--limit", 1) == 2
    assert "has a run with another limit" in capsys.readouterr().err


def test_tables_name_the_draft_that_a_pair_has_by_default(capsys, profile, prompts):
    common = [prompts, "--pair", "toy", "--profile", profile, "--max-tokens", 4, "--repeats", 1]
    assert bench(*common, "--limit", 1, "--methods", "specbranch") == 0
    assert "draft, greedy, mine: 1 questions, equal hardware" in capsys.readouterr().out


def test_both_placements_are_in_one_report(capsys, tmp_path, prompts):
    out = tmp_path / "out"
    common = [prompts, "--executor", "thread", "--max-tokens", 8, "--repeats", 1, "--limit", 1]
    assert bench(*common, "--methods", "sps-4", "specbranch", "--out", out) == 0
    found = capsys.readouterr().out
    assert "equal hardware" in found
    assert "a device each" in found
    assert "the same, per device" in found
    rows = json.loads((out / "speeds.json").read_text())
    devices = {(row["method"], row["placement"]): row["devices"] for row in rows}
    assert {m for m, p in devices if p == "a device each"} == {PLAIN, "sps-4", SPECBRANCH}
    assert devices["sps-4", "a device each"] == devices[SPECBRANCH, "a device each"] == 2
    assert devices[PLAIN, "a device each"] == devices["sps-4", "equal hardware"] == 1
    text = (out / "report.md").read_text()
    assert "× plain decoding, per device" in text
    assert "## Predicted and measured" in text


def test_answers_are_in_the_format_of_spec_bench(capsys, tmp_path, profile, prompts):
    out = tmp_path / "out"
    assert (
        bench(prompts, "--profile", profile, "--max-tokens", 10, "--repeats", 1, "--out", out) == 0
    )
    rows = {row["method"]: row for row in json.loads((out / "speeds.json").read_text())}
    for name, row in rows.items():
        file = out / "answers" / "temp0_run_1" / f"draft-{name}.jsonl"
        answers = [json.loads(line) for line in file.read_text().splitlines()]
        assert [answer["question_id"] for answer in answers] == ["code/1", 1, 7]
        choices = [answer["choices"][0] for answer in answers]
        assert len(choices[2]["turns"]) == len(choices[2]["wall_time"]) == 2
        # As Spec-Bench's speed.py computes them.
        lengths = [length for choice in choices for length in choice["accept_lengths"]]
        assert np.mean(lengths) == pytest.approx(row["accepted"])
        found = np.mean([sum(c["new_tokens"]) / sum(c["wall_time"]) for c in choices])
        assert found == pytest.approx(row["tokens_per_second"])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out / "answers" / "tokenizer")
    ids = tokenizer("def f(x):").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "def f(x):"


def test_the_formula_of_sps_predicts_its_virtual_time(tmp_path, profile, prompts):
    out = tmp_path / "out"
    common = [prompts, "--profile", profile, "--max-tokens", 32, "--repeats", 1, "--out", out]
    assert bench(*common, "--methods", "sps-4") == 0
    heats = RunFolder(out, {}).heats()
    (found,) = predictions(heats, ["plain", "sps-4"])
    assert found.gamma == 4
    assert found.c == pytest.approx(8, rel=0.02)  # some draft steps take two tokens
    assert found.predicted == pytest.approx(found.measured, rel=0.15)


def test_an_interrupt_keeps_what_is_finished(capsys, tmp_path, monkeypatch, profile, prompts):
    out = tmp_path / "out"
    common = [prompts, "--profile", profile, "--max-tokens", 8, "--repeats", 1, "--out", out]
    common += ["--methods", "sps-4"]
    add, kept = RunFolder.add, []

    def interrupted(self, one):
        if kept:
            raise KeyboardInterrupt
        kept.append(one)
        add(self, one)

    monkeypatch.setattr(RunFolder, "add", interrupted)
    assert bench(*common) == 0
    found = capsys.readouterr()
    assert "interrupted: the report is of what is finished" in found.err
    assert "1 questions" in found.out
    monkeypatch.undo()
    assert bench(*common) == 0
    assert "draft: 1 questions are done" in capsys.readouterr().err
    assert len(RunFolder(out, {}).heats()) == 3


def test_the_papers_figures_stand_beside_ours():
    rows = []
    for draft in ("draft", "draft-weak"):
        for suite in PAPER_SUITES:
            ours = a_device_each(SPECBRANCH)
            times = {PLAIN: 4.0, SPECBRANCH: 3.0, ON_SHARE: 8.0, ours: 2.0}
            one = replace(heat(Question(suite, 1, suite, ("x",)), **times), draft=draft)
            rows += speeds([one], list(times))
    headings, table = paper.beside(rows, {SPECBRANCH: "SpecBranch"})
    assert len({len(row) for row in [headings, *table]}) == 1
    ours = [row for row in table if row[1].startswith("ours")]
    assert [row[1] for row in ours] == ["ours: target & draft-weak", "ours: target & draft"]
    assert ours[0][3:] == ["4.00"] * 4  # over plain decoding on the target's share
    assert ["poorly aligned", "paper: LLaMA 68M & 7B", "SpecBranch"] in [row[:3] for row in table]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--limit", "0"], "--limit must be 1 or more, not 0"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be 1 or more, not 0"),
        (["--repeats", "0"], "--repeats must be 1 or more, not 0"),
        (["--acceptance", "rejection"], "texts can be compared with --acceptance coupled only"),
        (["--temperatures", "-1"], "temperature must be 0 (greedy) or more, not -1"),
        (["--drafts", "draft", "none"], "a comparison of methods needs a draft model"),
        (["none.jsonl"], "cannot read none.jsonl"),
        (["--out", "/dev/null/x"], "cannot write /dev/null/x"),
        (["--profile", "none.json"], "cannot read none.json: No such file"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(capsys, arguments, complaint):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_unknown_methods_are_refused(capsys, profile):
    assert bench("ten", "--profile", profile, "--methods", "psychic") == 2
    assert "no method 'psychic' to measure: use plain, " in capsys.readouterr().err
