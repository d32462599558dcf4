"""An `LLM` from the command line's options."""

from __future__ import annotations

import argparse
from typing import Any

from specbranch.llm import LLM
from specbranch.sampling import SamplingParams


def load_llm(options: argparse.Namespace) -> LLM:
    """Load the pair that the options name.

    Raises:
        InputError, UnsupportedModelError: as `LLM`.
    """
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("method", "gamma", "epsilon", "k_max")
        if getattr(options, name, None) is not None
    }
    return LLM(
        options.target,
        None if options.draft == "none" else options.draft,
        dtype=options.dtype,
        device=options.device,
        target_device=options.target_device,
        draft_device=options.draft_device,
        sharded=options.sharded,
        width=options.width or None,
        max_model_len=options.max_model_len,
        **given,
    )


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The sampling parameters that the options name.

    Raises:
        InputError: a value out of its range.
    """
    return SamplingParams(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        seed=options.seed,
        stop=options.stop,
        ignore_eos=options.ignore_eos,
        acceptance=options.acceptance,
    )
