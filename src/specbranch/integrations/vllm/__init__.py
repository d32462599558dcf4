"""SpecBranch inside vLLM: a proposer class whose draft works in a process of its own.

vLLM's side (`proposer` and what it imports) loads no model and needs no `transformers` of ours.
"""
