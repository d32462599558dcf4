"""The command line as a user types it, in a process of its own where that matters."""

import json
import subprocess
import sys

import pytest

from specbranch.cli import main

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
    for fact in ("target", "draft", "4096 tokens, the same for both", "1024 tokens", "torch"):
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
