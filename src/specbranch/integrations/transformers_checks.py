"""What the hook into `transformers` refuses, before anything is generated."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import GenerationMode

from specbranch.errors import InputError
from specbranch.methods.registry import MethodSpec, find_method
from specbranch.models.runner import CausalRunner

# What `transformers` prepares for every forward; the runner prepares its own.
_PREPARED = {
    "attention_mask",
    "position_ids",
    "past_key_values",
    "cache_params",
    "use_cache",
    "logits_to_keep",
}
# They keep a state from step to step, which drafting, where steps are taken back, would spoil.
_STATEFUL = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)


def find_spec(method: str, draft: object) -> MethodSpec:
    spec = find_method(
        method,
        draft is not None,
        "pass it as draft_model= (transformers does not hand assistant_model= on to "
        "custom_generate)",
    )
    if spec.needs_draft and not isinstance(draft, torch.nn.Module):
        raise InputError(f"draft_model must be a loaded model, not a {type(draft).__name__}")
    return spec


def check_length(longest: int, runner: CausalRunner, drafting: CausalRunner | None) -> None:
    for name, used in (("target", runner), ("draft", drafting)):
        if used is not None and longest > used.positions:
            raise InputError(
                f"the text may come to {longest} tokens and the {name}'s context holds "
                f"{used.positions}: lower max_new_tokens or max_length"
            )


def check_request(
    config: GenerationConfig, processors: LogitsProcessorList, model_kwargs: dict[str, Any]
) -> None:
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise InputError(
            f"specbranch decodes greedily or samples, it has no {mode.value}: leave out num_beams, "
            "penalty_alpha, prompt_lookup_num_tokens and the like"
        )
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if config.return_dict_in_generate and (asked := [o for o in outputs if getattr(config, o)]):
        raise InputError(f"specbranch returns the tokens alone: leave out {', '.join(asked)}")
    if config.cache_implementation == "quantized":
        raise InputError("specbranch has no quantized cache: leave out cache_implementation")
    for processor in processors:
        if isinstance(processor, _STATEFUL):
            raise InputError(
                f"{type(processor).__name__} keeps a state from step to step and cannot be used "
                "with drafting: leave out guidance_scale and SynthID watermarking"
            )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and (
        getattr(cache, "_is_user_defined", False) or cache.get_seq_length() > 0
    ):
        raise InputError("specbranch keeps its own cache: leave out past_key_values=")
    if other := [k for k, v in model_kwargs.items() if v is not None and k not in _PREPARED]:
        raise InputError(f"specbranch continues token ids alone: leave out {', '.join(other)}")
