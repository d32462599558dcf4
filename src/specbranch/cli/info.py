"""``specbranch info``: what would run, and on what."""

from __future__ import annotations

import argparse
import platform

import torch
import transformers
from rich.console import Console
from rich.table import Table

from specbranch import __version__
from specbranch.cli.pair import load_llm
from specbranch.hardware import has_native_bfloat16
from specbranch.llm import LLM
from specbranch.models.info import ModelInfo


def _describe(table: Table, role: str, model: ModelInfo) -> None:
    table.add_row(role, model.name)
    table.add_row(
        "",
        f"{model.architecture}, {model.parameters / 1e6:.2f}M parameters, {model.layers} layers, "
        f"{model.hidden_size} wide, {model.how}",
    )
    if model.found:
        table.add_row("", model.found)


def run_info(options: argparse.Namespace) -> int:
    """Load the pair and print what it is."""
    with load_llm(options) as llm:
        Console().print(_facts(llm))
    return 0


def _facts(llm: LLM) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    _describe(table, "target", llm.target)
    if llm.draft:
        _describe(table, "draft", llm.draft)
        table.add_row("vocabulary", f"{len(llm.tokenizer)} tokens")
    else:
        table.add_row("vocabulary", f"{len(llm.tokenizer)} tokens")
    if defaults := llm.engine.models.defaults:
        said = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
        table.add_row("generation", f"{said}; greedy unless a temperature is given")
    table.add_row("context", f"{llm.max_model_len} tokens")
    table.add_row("exactness", str(llm.padding))
    table.add_row("executor", llm.executor)
    if llm.executor == "process":
        table.add_row("", f"target: {llm.affinity.target}; alone: {llm.affinity.alone}")
        if llm.draft:
            table.add_row("", f"draft: {llm.affinity.draft}")
        table.add_row("", f"empty round trip: {1e3 * llm.engine.executors.round_trip():.3f} ms")
    native = "native" if has_native_bfloat16(torch.device("cpu")) else "emulated"
    table.add_row("cpu", f"{torch.get_num_threads()} threads, bfloat16 {native}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("gpus", ", ".join(gpus) or "none")
    versions = f"specbranch {__version__}, torch {torch.__version__}"
    versions += f", transformers {transformers.__version__}, Python {platform.python_version()}"
    table.add_row("versions", versions)
    return table
