"""`transformers`' own loop, and the hook in its place, on tiny models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedModel as Model
from transformers.generation import BaseStreamer

import specbranch

VOCABULARY = 48
POSITIONS = 128
Drafts = dict[str, Model]


def tiny(seed: int, noise_on: Model | None = None) -> Model:
    """A random Llama; with `noise_on` that model slightly changed, a draft that is often right."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        # Wide enough for rounding not to change the order of the logits.
        initializer_range=0.3,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        if noise_on is not None:
            model.load_state_dict(noise_on.state_dict())
            for weight in model.parameters():
                weight.data += 0.02 * torch.randn_like(weight)
    return model


def prompt(length: int, seed: int = 0, rows: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * length + seed)
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(*lengths: int) -> dict[str, Tensor]:
    rows = [prompt(n)["input_ids"][0] for n in lengths]
    ids, mask = (torch.zeros(len(rows), max(lengths), dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, -len(row) :] = row
        mask[i, -len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def both(target: Model, draft: Model, **arguments: Any) -> tuple[Any, Any]:
    """What `transformers` gives and what the hook gives."""
    arguments = {"do_sample": False, "max_new_tokens": 20} | arguments
    return target.generate(**arguments), ours_alone(target, draft, **arguments)


def ours_alone(target: Model, draft: Model | None, **arguments: Any) -> Any:
    # An ε below the default, for chains of some length.
    defaults = {"max_new_tokens": 20, "epsilon": 0.1, "custom_generate": specbranch.generate}
    return target.generate(**defaults | arguments, draft_model=draft)


def text_without_end(target: Model, inputs: dict[str, Tensor]) -> list[int]:
    out = target.generate(**inputs, do_sample=False, max_new_tokens=20)
    tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(value.tolist())

    def end(self) -> None:
        self.calls.append("end")
