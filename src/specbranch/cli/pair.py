"""An `LLM` from the command line's options."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from specbranch.bench.contenders import Pair
from specbranch.errors import InputError
from specbranch.executors.virtual import Profile
from specbranch.llm import LLM
from specbranch.models.pairs import find_pair
from specbranch.sampling_params import SamplingParams


def load_llm(options: argparse.Namespace, profile: Profile | None = None) -> LLM:
    """Load the pair that the options name.

    Args:
        profile: of virtual executors, instead of the one that the options name.

    Raises:
        InputError, UnsupportedModelError: as `LLM`.
    """
    if profile is None and options.profile:
        profile = Profile.load(options.profile)
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in (
            "method",
            "gamma",
            "epsilon",
            "k_max",
            "branching",
            "speculate",
            "retrieval",
            "executor_timeout",
            "startup_timeout",
        )
        if getattr(options, name, None) is not None
    }
    if getattr(options, "hrad", None) is not None:
        given["hrad"] = None if options.hrad == "none" else options.hrad
    return LLM(
        options.target,
        None if options.draft == "none" else options.draft,
        pair=options.pair,
        dtype=options.dtype,
        quantization=options.quantization,
        draft_quantization=options.draft_quantization,
        device=options.device,
        target_device=options.target_device,
        draft_device=options.draft_device,
        sharded=options.sharded,
        executor="virtual" if profile else options.executor,
        target_cores=options.target_cores,
        draft_cores=options.draft_cores,
        profile=profile,
        padding=options.padding or None,
        max_model_len=options.max_model_len,
        generation_config=options.generation_config,
        enforce_eager=options.enforce_eager,
        **given,
    )


def load_both(options: argparse.Namespace) -> Pair:
    """The pair that the options name, once with sequential and once with overlapped executors.

    Raises:
        InputError, UnsupportedModelError: as `LLM`.
    """
    named = options.pair is not None and find_pair(options.pair).drafts
    if options.draft == "none" or (options.draft == "auto" and not named):
        raise InputError("a comparison of methods needs a draft model")

    def make(executor: str) -> LLM:
        changed: dict[str, str | None] = {"executor": executor}
        if executor != options.executor:
            changed |= {"target_cores": None, "draft_cores": None}
        return load_llm(argparse.Namespace(**vars(options) | changed))

    return Pair.load(make, options.executor)


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """The sampling parameters that the options name.

    Raises:
        InputError: a value out of its range.
    """
    names = [field.name for field in fields(SamplingParams)]
    given = {name: vars(options)[name] for name in names if name in options}
    asked = {
        "json" if name == "json_schema" else name: getattr(options, name, None)
        for name in ("json_schema", "json_object", "regex", "choice", "grammar")
    }
    if structured := {name: value for name, value in asked.items() if value is not None}:
        given["structured_outputs"] = structured
    return SamplingParams(**given)
