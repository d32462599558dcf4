"""The command line as a user types it, in a process of its own where that matters."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest

from specbranch import LLM, SamplingParams
from specbranch.cli import main
from specbranch.cli.held_back import hold_back_warnings
from specbranch.cli.main import build_parser
from specbranch.errors import InputError
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer

PROMPT = "def quicksort(xs):"


def test_generate_prints_the_text_and_a_summary(capsys):
    assert main(["generate", PROMPT, "--max-tokens", "20"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(PROMPT)
    assert "20 tokens in" in out
    for figure in ("tokens/s", "M ", "RB ", "target calls"):
        assert figure in out
    assert "\x1b" not in out


def test_json_is_one_object_with_everything(capsys):
    assert main(["generate", PROMPT, "--max-tokens", "20", "--json", "--temperature", "0.8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["token_ids"]) == len(found["origins"]) == 20
    assert found["finish_reason"] == "length"
    assert found["method"] == "specbranch"
    assert isinstance(found["seed"], int)
    assert sum(len(r["tokens"]) for r in found["rounds"]) == 20
    assert found["metrics"]["committed"] == 20
    assert found["metrics"]["target_calls"] == len(found["rounds"])


@pytest.mark.parametrize("method", ["speculative", "specbranch"])
@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_compare_finds_the_tokens_identical(capsys, tmp_path, method, temperature):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": PROMPT}, {"question": "How many?"}, {"turns": ["Summarize: a b c"]}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    arguments = ["--compare", "--method", method, "--max-tokens", "24"]
    arguments += ["--temperature", temperature]
    assert main(["generate", "--file", str(file), *arguments]) == 0
    out = capsys.readouterr().out
    assert "token-identical to plain decoding: 3 of 3 prompts" in out
    assert "speed-up" in out


def test_info_names_the_pair(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for fact in ("target", "draft", "4096 tokens", "1024 tokens", "torch"):
        assert fact in out


def test_prompt_from_standard_input_in_a_pipe():
    command = [sys.executable, "-m", "specbranch", "generate", "--max-tokens", "8", "--no-color"]
    command += ["--speculate", "always"]  # no word about its being turned off on a busy machine
    done = subprocess.run(command, input=PROMPT + "\n", capture_output=True, text=True, check=True)
    assert done.stdout.startswith(PROMPT)
    assert "8 tokens in" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([""], "the prompt is empty"),
        (["x", "--target", "./no/such/folder"], "no model './no/such/folder': no such folder"),
        (["x", "--temperature", "-1"], "temperature must be 0 (greedy) or more, not -1.0"),
        (["x", "--method", "psychic"], "unknown method 'psychic': use autoregressive"),
        (["x", "--gamma", "0"], "gamma must be 1 or more"),
        (["x", "--dtype", "int3"], "unknown dtype 'int3'"),
        (["x", "--device", "abacus"], "unknown device 'abacus'"),
        (["x", "--draft", "none", "--method", "speculative"], "needs a draft model"),
        (["word " * 2000], "the context holds 1024"),
        (["--file", "no-such-file.txt"], "cannot read no-such-file.txt: No such file"),
        (["x", "--compare", "--temperature", "1", "--acceptance", "rejection"], "--compare needs"),
        (
            ["x", "--compare", "--timeline", "x.svg"],
            "--compare draws nothing: use `specbranch compare",
        ),
        (["x", "--limit", "0"], "--limit must be 1 or more, not 0"),
        (["x", "--executor-timeout", "0"], "executor_timeout must be more than 0 seconds, not 0"),
        (["x", "--executor", "inline", "--draft-cores", "0"], "only process executors have cores"),
        (["x", "--method", "speculative", "--target-cores", "0"], "these are inline"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, complaint):
    assert main(["generate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is empty"),
        ("{not json}\n", "line 1: no JSON"),
        ('{"x": 1}\n', "row 1: no prompt; a row needs 'prompt', 'question' or 'turns'"),
        ("[1]\n", "line 1: not a JSON object"),
    ],
)
def test_bad_prompt_files(capsys, tmp_path, content, complaint):
    file = tmp_path / ("p.jsonl" if content else "p.txt")
    file.write_text(content)
    assert main(["generate", "--file", str(file)]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.count("\n") == 1


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from specbranch.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "generate" in done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The arguments that name a tiny target without a draft."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_pair_half(folder, tiny_model("llama"), tiny_tokenizer())
    return ["--target", str(folder), "--draft", "none", "--max-tokens", "4", "--padding", "0"]


def errors(stderr):
    """The complaints on standard error, where loading may show its progress, too."""
    assert "Traceback" not in stderr
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


BAD_ROWS = [
    ('{"prompt": null}', "row 2: no prompt"),
    ('{"prompt": ["w1"]}', "row 2: no prompt"),
    ('{"question": 5}', "row 2: no prompt"),
    ("{nonsense", "line 2: no JSON"),
    ('{"prompt": ""}', "row 2: the prompt is empty"),
    ('{"prompt": "w1 \\ud83d"}', "row 2: the prompt is broken text: a lone surrogate"),
    (json.dumps({"prompt": "w1 " * 300}), "row 2: the prompt has 300 tokens"),
]


@pytest.mark.parametrize(("row", "complaint"), BAD_ROWS)
def test_a_bad_row_is_reported_and_the_others_are_continued(capsys, tmp_path, tiny, row, complaint):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt": "w1"}}\n{row}\n{{"prompt": "w3"}}\n')
    assert main(["generate", "--file", str(file), "--json", *tiny]) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in captured.out.splitlines()] == ["w1", "w3"]
    [error] = errors(captured.err)
    assert error.startswith(f"error: {file}, {complaint}")


@pytest.mark.parametrize(("row", "complaint"), BAD_ROWS)
def test_bad_rows_alone_are_bad_input(capsys, tmp_path, tiny, row, complaint):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{{"prompt": null}}\n{row}\n')
    assert main(["generate", "--file", str(file), "--json", *tiny]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = errors(captured.err)
    assert first.startswith(f"error: {file}, row 1: no prompt")
    assert second.startswith(f"error: {file}, {complaint}")


def run(*arguments, **options):
    command = [sys.executable, "-m", "specbranch", "generate", *arguments]
    return subprocess.run(command, capture_output=True, check=False, **options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_output_that_lacks_characters_loses_no_text(tiny, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = run("w1 日本 w2", *tiny, env=environment)
    assert (done.returncode, errors(done.stderr.decode())) == (0, [])
    shown = "日本" if encoding == "utf-8" else r"\u65e5\u672c"
    assert done.stdout.startswith(f"w1 {shown} w2".encode(encoding))
    assert b"4 tokens in" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "options", "complaint"),
    [
        ([], {"input": b"\xff\xfe w1"}, "error: standard input is not UTF-8 text"),
        ([b"\xff w1"], {}, "error: the prompt is broken text: a lone surrogate"),
        ([], {"stdin": None, "preexec_fn": lambda: os.close(0)}, "error: no prompt: give it"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(tiny, arguments, options, complaint):
    done = run(*arguments, *tiny, **options)
    assert (done.returncode, done.stdout) == (2, b"")
    [error] = errors(done.stderr.decode())
    assert error.startswith(complaint)


def test_former_names_of_options_are_accepted_and_not_shown():
    former = ["--lanes", "thread", "--lane-timeout", "5", "--width", "8"]
    options = build_parser().parse_args(["generate", "x", *former])
    assert (options.executor, options.executor_timeout, options.padding) == ("thread", 5.0, 8)
    current = ["--executor", "thread", "--executor-timeout", "5", "--padding", "8"]
    assert build_parser().parse_args(["generate", "x", *current]) == options
    defaults = build_parser().parse_args(["generate", "x"])
    assert (defaults.executor, defaults.executor_timeout, defaults.padding) == (
        "auto",
        None,
        "auto",
    )


@pytest.mark.parametrize("own_handler", [False, True])
def test_warnings_wait_for_the_end_of_the_text(monkeypatch, own_handler):
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler] if own_handler else [])
    monkeypatch.setattr(logging, "lastResort", handler)
    monkeypatch.setattr(
        warnings, "showwarning", lambda message, *_, **__: output.write(f"{message}\n")
    )
    logger = logging.getLogger("specbranch.test_cli")

    def interrupted():
        with hold_back_warnings():
            output.write("the te")
            logger.warning("a record")
            warnings.warn("a warning", stacklevel=1)
            output.write("xt\n")
            raise KeyboardInterrupt

    logger.warning("before")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    logger.warning("after")
    assert output.getvalue() == "before\nthe text\na record\na warning\nafter\n"


def test_the_demo_falls_back_on_the_toy_and_says_so(capsys, monkeypatch):
    def offline(_):
        raise InputError("cannot get the pair 'smollm2': no network")

    monkeypatch.setattr("specbranch.cli.demo.locate", offline)
    assert main(["demo", "--max-tokens", "12"]) == 0
    said = capsys.readouterr()
    assert "no network" in said.err
    assert "Here is the toy pair instead" in said.err
    assert said.out.startswith(PROMPT)
    assert "12 tokens in" in said.out


def test_the_demo_asks_a_question_where_the_pair_is_there(capsys, monkeypatch):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.chat_template = "w5 {{ messages[0]['content'] }} w6"
    asked = LLM.from_models(model, None, tokenizer)
    [expected] = asked.generate([[5, 1, 2, 6]], SamplingParams(max_tokens=8))
    monkeypatch.setattr("specbranch.cli.demo.locate", lambda _: "here")
    monkeypatch.setattr("specbranch.cli.demo.LLM", lambda **_: asked)
    assert main(["demo", "w1 w2", "--max-tokens", "8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("> w1 w2\n")
    assert expected.outputs[0].text in out


def test_named_pairs_are_listed(capsys):
    assert main(["pairs"]) == 0
    out = capsys.readouterr().out
    assert "smollm2" in out
    assert "toy" in out
    assert main(["pull", "toy"]) == 0
    assert "already here" in capsys.readouterr().out
    assert main(["pull", "nope"]) == 2
    assert "no pair 'nope'" in capsys.readouterr().err


def test_a_draft_report_ends_in_one_sentence(tmp_path, capsys):
    target = save_pair_half(tmp_path / "target", tiny_model("llama"), tiny_tokenizer())
    prompts = tmp_path / "words.jsonl"
    prompts.write_text('{"prompt": "w1 w2"}\n{"prompt": "w3 w4 w5"}\n')
    command = ["draft", "report", "--target", target, "--draft", target, "--max-tokens", "24"]
    assert main([*command, "--prompts", str(prompts)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "words │ 1.000" in out
    assert re.search(r"with this draft: [\d.]+ × on two devices, [\d.]+ × on one", out)
    assert "is the draft the target itself?" in out
