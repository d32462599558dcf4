"""``specbranch vllm-args``: the line that serves a pair with vLLM on this machine."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from specbranch.cli.checks import check_counts
from specbranch.errors import InputError
from specbranch.executors.cpu_affinity import AffinityPlan, divide
from specbranch.models.gguf import is_gguf
from specbranch.models.loader import load_tokenizer, resolve
from specbranch.models.vocabularies import check_vocabularies

ON_CPU, ON_GPU = 5, 8  # tokens to draft: a GPU verifies more of them for the price of one


def run_vllm_args(options: argparse.Namespace) -> int:
    """Check the pair and print the line."""
    check_counts(options, "num_speculative_tokens")
    if is_gguf(options.target):
        raise InputError(
            "vLLM needs a model folder or a name on the hub as target, not a GGUF file"
        )
    check_vocabularies(
        load_tokenizer(options.target),
        load_tokenizer(options.draft),
        (options.target, options.draft),
    )
    gpus = torch.cuda.device_count() if options.device == "auto" else int(options.device != "cpu")
    device = "cuda" if gpus else "cpu"
    draft_device = f"cuda:{gpus - 1}" if gpus > 1 else "cpu"
    plan = divide(
        torch.device(device),
        torch.device(draft_device),
        options.target_cores,
        options.draft_cores,
    )
    print(line(options, gpus, draft_device, plan))
    return 0


def line(options: argparse.Namespace, gpus: int, draft_device: str, plan: AffinityPlan) -> str:
    """A shell's command, with its environment, over several lines.

    Args:
        options: of the command line.
        gpus: how many there are; the target runs on the CPU without any.
        draft_device: where the draft runs.
        plan: the cores of both.
    """
    settings: dict[str, str] = {"draft": _found(options.draft)}
    if draft_device == "cpu":
        if plan.draft.cores:
            settings["cores"] = ",".join(map(str, plan.draft.cores))
    else:
        settings["device"] = draft_device
    speculation = {
        "method": "custom_class",
        "model": "specbranch.vllm.Proposer",
        "num_speculative_tokens": options.num_speculative_tokens or (ON_GPU if gpus else ON_CPU),
    }
    words = ["vllm serve", shlex.quote(_found(options.target))]
    if not gpus:  # the `vllm` command of the CPU's package asks for a package of another name
        words = ["python -m vllm.entrypoints.openai.api_server --model", words[1]]
    words = [
        " ".join(words),
        f"--speculative-config {shlex.quote(json.dumps(speculation))}",
        f"--additional-config {shlex.quote(json.dumps({'specbranch': settings}))}",
    ]
    before = []
    if not gpus:
        openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
        if openmp.exists():
            before.append(f"LD_PRELOAD={shlex.quote(str(openmp))}")
        if plan.target.cores:
            cores = ",".join(map(str, plan.target.cores))
            before.append(f"VLLM_CPU_OMP_THREADS_BIND={cores}")
    return " \\\n    ".join([*before, *words])


def _found(name: str) -> str:
    """A bundled model's folder, an absolute path, or a name on the hub."""
    if is_gguf(name):
        return str(Path(name).absolute())
    where = resolve(name)
    return str(Path(where).absolute()) if Path(where).exists() else where
