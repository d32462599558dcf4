"""`transformers`' own `generate`: plain, with a draft model, or with prompt lookup."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from serving import Generate, read_options, serve
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_model(folder: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Generation goes on after the end-of-text token.
    model.generation_config.eos_token_id = None
    return model


def load(target: str, draft: str | None, lookup: int | None, threads: int) -> tuple[str, Generate]:
    torch.set_num_threads(threads)
    model = load_model(target)
    more: dict[str, Any] = {}
    if draft:
        more["assistant_model"] = load_model(draft)
    if lookup:
        more["prompt_lookup_num_tokens"] = lookup

    def generate(ids: list[int], count: int) -> list[int]:
        prompt = torch.tensor([ids])
        mask = torch.ones_like(prompt)
        found = model.generate(
            prompt, attention_mask=mask, max_new_tokens=count, do_sample=False, **more
        )
        return found[0, len(ids) :].tolist()

    return transformers.__version__, generate


def main() -> None:
    options = read_options(__doc__, "target", "--draft", "--lookup", "--threads")
    serve(lambda: load(options.target, options.draft, options.lookup, options.threads))


if __name__ == "__main__":
    main()
