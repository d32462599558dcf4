"""vLLM's entry point `vllm.general_plugins`: vLLM calls it in each of its processes."""

from __future__ import annotations

from specbranch.integrations.vllm.metrics import publish
from specbranch.integrations.vllm.sampling_fix import mend_sampling


def register() -> None:
    """Mend sampling on the CPU, and show the proposer's counters beside vLLM's own."""
    mend_sampling()
    publish()
