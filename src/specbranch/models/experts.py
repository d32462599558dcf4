"""Experts: layers that run a token through a few of many feed-forward networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

# Entries of configurations, by the families that have them.
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")


@dataclass(frozen=True)
class Experts:
    """How many experts a model's layers have, and how many of them a token goes through."""

    count: int
    chosen: int

    def __str__(self) -> str:
        return f"{self.count} experts, {self.chosen} for each token"


def experts_of(config: PreTrainedConfig) -> Experts | None:
    """The experts of a model with this configuration; None if it has none."""
    text = config.get_text_config()
    count, chosen = (
        next((value for name in names if (value := getattr(text, name, None))), None)
        for names in (_COUNTS, _CHOSEN)
    )
    return Experts(count, chosen or 1) if count else None


@contextmanager
def run_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Have each token go through its experts alone for a while (`transformers`' `batched_mm`).

    The default multiplies all tokens of an expert together, so that a token's rounding depends on
    which others chose the same expert. Alone, a token needs a copy of its experts' weights, which
    is for short forwards only.
    """
    before = model.config._experts_implementation
    model.config._experts_implementation = "batched_mm"
    try:
        yield
    finally:
        model.config._experts_implementation = before
