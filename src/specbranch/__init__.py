"""SpecBranch: lossless speculative decoding with rollback-aware branch parallelism."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specbranch.openmp import limited_spinning

if TYPE_CHECKING:
    from specbranch.integrations.transformers import generate
    from specbranch.llm import LLM
    from specbranch.outputs import CompletionOutput, Piece, RequestOutput
    from specbranch.sampling_params import SamplingParams
    from specbranch.structured_outputs import StructuredOutputsParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "Piece",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "generate",
]
__version__ = "0.1.0"

_HOMES = {
    "LLM": "specbranch.llm",
    "SamplingParams": "specbranch.sampling_params",
    "StructuredOutputsParams": "specbranch.structured_outputs",
    "generate": "specbranch.integrations.transformers",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: `specbranch --help` need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'specbranch' has no attribute '{name}'")
    with limited_spinning():  # the import may load torch
        module = import_module(_HOMES.get(name, "specbranch.outputs"))
    return getattr(module, name)
