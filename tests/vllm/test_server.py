"""vLLM's OpenAI server with the proposer answers as it does without."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from specbranch.zoo import BUNDLED
from tests.vllm.engine_run import ENVIRONMENT, GAMMA
from tests.vllm.test_engine import ROOT

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.timeout(3600),
]
PROMPT = "Once upon a time there were 3 little birds. They"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": [" the", ","]},
    "logprobs": {"logprobs": 2, "max_tokens": 12},
    "penalties": {"frequency_penalty": 0.7, "presence_penalty": 0.4, "repetition_penalty": 1.2},
    "schema": {"structured_outputs": {"json": SCHEMA}, "max_tokens": 60},
    "long": {"max_tokens": 470},  # to the end of the context
}


@contextmanager
def server(drafted: bool, log: Path) -> Iterator[str]:
    """A server's address; the server ends with the block."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(BUNDLED["target"]), "--served-model-name", "toy"]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "512"]
    command += ["--max-num-seqs", "8", "--enforce-eager", "--num-gpu-blocks-override", "40"]
    if drafted:
        model = "specbranch.vllm.Proposer"
        how = {"method": "custom_class", "model": model, "num_speculative_tokens": GAMMA}
        command += ["--speculative-config", json.dumps(how)]
        settings = {"specbranch": {"draft": str(BUNDLED["draft"])}}
        command += ["--additional-config", json.dumps(settings)]
    environment = os.environ | ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.exists():
        environment["LD_PRELOAD"] = str(openmp)
    with log.open("w") as file:
        running = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, running, log)
        yield address
    finally:
        running.terminate()
        running.wait(timeout=60)


def wait_for(address: str, running: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    end = time.monotonic() + 900
    while time.monotonic() < end:
        assert running.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail("the server did not start")


def ask(address: str, **more: Any) -> dict[str, Any]:
    import httpx

    body = {"model": "toy", "prompt": PROMPT, "temperature": 0, "max_tokens": 40} | more
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(address: str, pieces: int | None = None) -> str:
    """The streamed text; the client leaves after so many pieces."""
    import httpx

    body = {"model": "toy", "prompt": PROMPT, "temperature": 0, "max_tokens": 60, "stream": True}
    text = ""
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=600) as answer:
        for number, line in enumerate(line for line in answer.iter_lines() if line):
            data = line.removeprefix("data: ")
            if data == "[DONE]" or number == pieces:
                break
            text += json.loads(data)["choices"][0]["text"]
    return text


def ask_everything(address: str) -> dict[str, Any]:
    import httpx

    found: dict[str, Any] = {}
    for name, more in QUESTIONS.items():
        [choice] = ask(address, **more)["choices"]
        found[name] = {key: choice[key] for key in ("text", "finish_reason", "logprobs")}
    several = ask(address, n=3, temperature=0.9, seed=1)["choices"]
    found["n"] = sorted(choice["index"] for choice in several)
    found["stream"] = stream(address)
    for _ in range(3):
        stream(address, pieces=2)  # aborted
    found["after aborts"] = ask(address)["choices"][0]["text"]
    refused = httpx.post(
        f"{address}/v1/completions", json={"model": "toy", "prompt": PROMPT, "temperature": -1}
    )
    found["refused"] = refused.status_code
    found["metrics"] = httpx.get(f"{address}/metrics").text
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, Any]]:
    found = {}
    for drafted in (False, True):  # one after the other: there is memory for one
        log = tmp_path_factory.mktemp("server") / "log"
        with server(drafted, log) as address:
            found[drafted] = ask_everything(address)
    return found


@pytest.mark.parametrize("name", [*QUESTIONS, "n", "stream", "after aborts", "refused"])
def test_an_answer_is_that_of_vllm_alone(answers: dict[bool, dict[str, Any]], name: str) -> None:
    plain, drafted = answers[False][name], answers[True][name]
    if name == "logprobs":
        assert drafted["logprobs"].pop("token_logprobs") == pytest.approx(
            plain["logprobs"].pop("token_logprobs"), abs=1e-3
        )
        tops = zip(
            drafted["logprobs"].pop("top_logprobs"),
            plain["logprobs"].pop("top_logprobs"),
            strict=True,
        )
        for ours, theirs in tops:
            assert ours == pytest.approx(theirs, abs=1e-3)
    assert drafted == plain


def test_what_a_schema_asks_for_is_written(answers: dict[bool, dict[str, Any]]) -> None:
    written = answers[True]["schema"]
    if written["finish_reason"] == "stop":
        assert json.loads(written["text"]).keys() == {"name", "old"}
    else:
        assert written["text"].startswith("{")


def test_the_counters_are_beside_vllms_own(answers: dict[bool, dict[str, Any]]) -> None:
    lines = answers[True]["metrics"].splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    counted = {name: float(value) for name, value in values.items() if "specbranch" in name}
    print(counted)
    assert counted["vllm:specbranch_committed_tokens_total"] > 0
    assert "vllm:specbranch_" not in answers[False]["metrics"]
