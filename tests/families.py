"""Tiny random models of the families that people run, one a line of the table in docs/models.md."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from specbranch.errors import UnsupportedModelError
from specbranch.models.architecture import check_cache
from specbranch.models.layer_states import has_states
from specbranch.models.recurrent_runner import runner_of
from specbranch.models.validation import validate
from tests.tiny import GATED, POSITIONS, SHAPE

WINDOW = 8  # short, so that short texts leave it
SLIDING = {"sliding_window": WINDOW}
ALTERNATING = SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
HEADS = GATED | {"head_dim": 8}
ROPE = {"rope_theta": 10000.0}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
}


@dataclass(frozen=True)
class Family:
    """Models of one kind.

    Attributes:
        name: for people.
        kind: `transformers`' model type.
        entries: of the configuration, besides those of `tests.tiny.SHAPE`.
        layers: what is special about them, for people.
        refused: a part of the reason why its models cannot be decoded; None if they can.
    """

    name: str
    kind: str
    entries: dict[str, Any] = field(default_factory=dict)
    layers: str = "full attention"
    refused: str | None = None

    def config(self) -> PreTrainedConfig:
        return AutoConfig.for_model(self.kind, **(SHAPE | self.entries))

    def refusal(self) -> str | None:
        """What a user is told who loads one; None if it can be decoded."""
        try:
            check_cache(self.config(), self.name)
            validate(runner_of(self.model()), self.name)
        except UnsupportedModelError as error:
            return str(error)
        return None

    def model(self, noise: float = 0.0) -> PreTrainedModel:
        """A random model in evaluation mode; with noise a draft that is often right."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(self.config()).eval()
            with torch.no_grad():
                for weight in model.parameters() if noise else ():
                    weight += noise * torch.randn_like(weight)
        return model


WINDOWS = "a window"
MIXED = "a window in some layers"

FAMILIES = [
    Family("GPT-2", "gpt2"),
    Family("GPT-NeoX, Pythia", "gpt_neox", {"intermediate_size": 64}),
    Family("StableLM", "stablelm", GATED),
    Family(
        "Llama 3",
        "llama",
        GATED
        | {
            "rope_parameters": ROPE
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        "full attention, scaled rotary positions",
    ),
    Family(
        "Llama 4",
        "llama4_text",
        HEADS
        | {
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "num_local_experts": 4,
            "intermediate_size_mlp": 48,
        },
        "chunks in some layers, experts",
    ),
    Family("Mistral", "mistral", GATED | SLIDING, WINDOWS),
    Family("Ministral", "ministral", HEADS | ALTERNATING, MIXED),
    Family("Mixtral", "mixtral", GATED | SLIDING | {"num_local_experts": 4}, "a window, experts"),
    Family("Qwen 2", "qwen2", GATED | ALTERNATING | {"use_sliding_window": True}, MIXED),
    Family("Qwen 3", "qwen3", HEADS),
    Family(
        "Qwen 3 MoE",
        "qwen3_moe",
        HEADS | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "full attention, experts",
    ),
    Family("Gemma", "gemma", HEADS),
    Family(
        "Gemma 2",
        "gemma2",
        HEADS | ALTERNATING | {"query_pre_attn_scalar": 8},
        f"{MIXED}, soft-capping",
    ),
    Family(
        "Gemma 3",
        "gemma3_text",
        HEADS
        | ALTERNATING
        | {
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "sliding_attention": ROPE | {"rope_type": "default"},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
        f"{MIXED}, rotary positions by layer",
    ),
    Family(
        "Gemma 3n",
        "gemma3n_text",
        HEADS
        | SLIDING
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
        f"{MIXED}, keys shared by layers",
    ),
    Family(
        "Gemma 4",
        "gemma4_text",
        HEADS
        | SLIDING
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "global_head_dim": 16,
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
        },
        f"{MIXED}, keys shared by layers",
    ),
    Family("Phi-3, Phi-4", "phi3", GATED | SLIDING, WINDOWS),
    Family(
        "gpt-oss",
        "gpt_oss",
        HEADS
        | ALTERNATING
        | {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rope_parameters": ROPE
            | {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": POSITIONS // 4,
                "truncate": False,
            },
        },
        f"{MIXED}, attention sinks, experts",
    ),
    Family("OLMo 2", "olmo2", GATED),
    Family("OLMo 3", "olmo3", GATED | ALTERNATING, MIXED),
    Family("Cohere 2, Command R7B", "cohere2", HEADS | ALTERNATING, MIXED),
    Family("SmolLM 3", "smollm3", GATED | {"no_rope_layers": [1, 0]}),
    Family("Granite", "granite", GATED),
    Family("EXAONE 4", "exaone4", HEADS | ALTERNATING, MIXED),
    Family("GLM 4", "glm4", HEADS),
    Family(
        "DeepSeek V3",
        "deepseek_v3",
        GATED
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "first_k_dense_replace": 1,
        },
        "latent attention, experts",
    ),
    Family(
        "Qwen 3 Next",
        "qwen3_next",
        HEADS
        | LINEAR
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
        "gated delta nets, experts",
    ),
    Family("Qwen 3.5", "qwen3_5_text", HEADS | LINEAR, "gated delta nets"),
    Family(
        "LFM2",
        "lfm2",
        GATED | {"layer_types": ["conv", "full_attention"]},
        "short convolutions",
    ),
    Family(
        "Granite 4 hybrid",
        "granitemoehybrid",
        GATED
        | MAMBA
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
        },
        "Mamba 2 in some layers",
    ),
    Family("Falcon H1", "falcon_h1", GATED | MAMBA, "Mamba 2 beside attention"),
    Family(
        "Mamba 2",
        "mamba2",
        {
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 1,
            "max_position_embeddings": None,
        },
        "Mamba 2",
    ),
    Family(
        "Mamba",
        "mamba",
        {"max_position_embeddings": None},
        "selective state spaces",
        "its layers do not go on from a state with several tokens",
    ),
    Family(
        "GPT-Neo",
        "gpt_neo",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
        "local attention in some layers",
        "its local attention counts slots of the cache",
    ),
    Family(
        "BLOOM",
        "bloom",
        {"n_layer": 2, "n_head": 4, "max_position_embeddings": None},
        "biases by distance (ALiBi)",
        "its attention has biases by distance (ALiBi)",
    ),
    Family("T5", "t5", {"d_model": 32}, "encoder and decoder", "it is an encoder-decoder"),
]
EXACT = [family for family in FAMILIES if family.refused is None]


def table() -> str:
    """The families as docs/models.md has them: ``python -m tests.families`` prints it."""
    rows = ["| family | `model_type` | layers | text |", "|---|---|---|---|"]
    for family in FAMILIES:
        text = "exact, up to rounding" if has_states(family.config()) else "exact"
        if family.refused is not None:
            message = str(family.refusal()).removeprefix(family.name)
            message = message.removeprefix(f" ({family.kind}) cannot be used: ").strip()
            text = f"refused: {re.sub(r' [(]relative difference [^)]*[)]', '', message)}"
        rows.append(f"| {family.name} | `{family.kind}` | {family.layers} | {text} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
