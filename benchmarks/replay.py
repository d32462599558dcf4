"""What rejections cost with recurrent layers: rows that are run again, and forwards for them alone.

Both are for each verification, of tiny random models: the counts depend on the acceptance alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specbranch import LLM, SamplingParams

ENTRIES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention"],
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "eos_token_id": None,
}


def lfm2(noise: float) -> PreTrainedModel:
    """A random LFM2; with noise on its weights, a draft that is sometimes right."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("lfm2", **ENTRIES)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def count(noise: float, gamma: int, tokens: int) -> None:
    """Print a row of the table."""
    target, draft = lfm2(0.0), lfm2(noise)
    rows: list[int] = []
    options: dict[str, Any] = {"epsilon": 0.0, "speculate": "always", "retrieval": False}
    with LLM.from_models(target, draft, method="speculative", gamma=gamma, **options) as llm:
        target.register_forward_pre_hook(
            lambda module, args, given: rows.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        prompt = [7 * i % 64 for i in range(9)]
        [done] = llm.generate([prompt], SamplingParams(max_tokens=tokens))
    verifications = done.metrics.target_calls
    del rows[0]  # the prompt
    # The last chain may be shorter.
    again = max(0, sum(rows) - verifications * (gamma + 1))
    added = len(rows) - verifications
    print(
        f"| {done.metrics.mean_accepted_length:.2f} | {again / verifications:.1f} | "
        f"{added / verifications:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args()
    print("| mean acceptance length | rows run again | forwards added |")
    print("|---|---|---|")
    for noise in (0.0, 0.01, 0.02, 0.05, 0.1):
        count(noise, options.gamma, options.tokens)


if __name__ == "__main__":
    main()
