"""Short names for vLLM's command line: ``"model": "specbranch.vllm.Proposer"``."""

from specbranch.integrations.vllm.proposer import Proposer

__all__ = ["Proposer"]
