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
from specbranch.models.loading import Loaded


def _describe(table: Table, role: str, loaded: Loaded) -> None:
    model = loaded.model
    config = model.config.get_text_config()
    millions = model.num_parameters() / 1e6
    table.add_row(role, loaded.name)
    table.add_row(
        "",
        f"{config.model_type}, {millions:.2f}M parameters, {config.num_hidden_layers} layers, "
        f"{config.hidden_size} wide, {str(model.dtype).removeprefix('torch.')} on {model.device}",
    )


def run_info(options: argparse.Namespace) -> int:
    """Load the pair and print what it is."""
    llm = load_llm(options)
    table = Table(show_header=False, box=None, pad_edge=False)
    _describe(table, "target", llm.target)
    if llm.draft:
        _describe(table, "draft", llm.draft)
        table.add_row("vocabulary", f"{len(llm.tokenizer)} tokens, the same for both")
    else:
        table.add_row("vocabulary", f"{len(llm.tokenizer)} tokens")
    table.add_row("context", f"{llm.max_model_len} tokens")
    exact = f"{llm.width} tokens a target forward" if llm.width else "natural widths"
    table.add_row("exactness", f"{exact}: {'bit-exact' if llm.width else 'exact up to rounding'}")
    native = "native" if has_native_bfloat16(torch.device("cpu")) else "emulated"
    table.add_row("cpu", f"{torch.get_num_threads()} threads, bfloat16 {native}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("gpus", ", ".join(gpus) or "none")
    versions = f"specbranch {__version__}, torch {torch.__version__}"
    versions += f", transformers {transformers.__version__}, Python {platform.python_version()}"
    table.add_row("versions", versions)
    Console().print(table)
    return 0
