"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
import transformers

from specbranch import __version__
from specbranch.bench.contenders import Entrant, Pair
from specbranch.hardware import cpu_name, has_native_bfloat16
from specbranch.models.info import ModelInfo


def machine() -> dict[str, Any]:
    """Hardware and versions, as JSON types."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu_name(),
        "memory": f"{memory:.0f} GiB",
        "bfloat16": "native" if has_native_bfloat16(torch.device("cpu")) else "emulated",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "python": platform.python_version(),
        "specbranch": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def pair_facts(pair: Pair, entrants: list[Entrant]) -> dict[str, Any]:
    """Models, cores of each executor, and who took part, as JSON types."""
    llm = pair.parallel
    assert llm.draft is not None
    return {
        "target": _model(llm.target),
        "draft": _model(llm.draft),
        "exactness": str(llm.padding),
        "executors": llm.executor,
        "cores": {
            "target, beside the draft": str(llm.affinity.target),
            "draft, beside the target": str(llm.affinity.draft),
            "either, alone": str(llm.affinity.alone),
        },
        "labels": {entrant.name: entrant.label for entrant in entrants},
        "rows": [entrant.name for entrant in entrants if entrant.competes],
        "exact": [entrant.name for entrant in entrants if entrant.exact],
        "devices": {entrant.name: entrant.devices for entrant in entrants},
    }


def _model(facts: ModelInfo) -> str:
    parameters = f"{facts.parameters / 1e6:.1f}M parameters"
    return f"{facts.name}: {facts.architecture}, {parameters}, {facts.how}"
