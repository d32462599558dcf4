"""Tests with a real vLLM: `make test-vllm` sets up its environment and runs them."""
