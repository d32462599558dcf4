"""Draft training on what the target itself writes: its continuations, greedy and sampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from specbranch.training.pair.corpus import TokenStreams

CONTINUATION = 128
TOP = 32
# Prompt length and rows of a chunk; three short chunks to one long keep the cost even.
SHAPES = ((64, 96), (160, 96), (64, 96), (320, 64), (160, 96), (768, 24))
WEIGHTS = {"code": 0.35, "math": 0.25, "news": 0.2, "encyclopedia": 0.2}
PROMPT_WEIGHT = 0.1


@torch.inference_mode()
def write_continuations(
    target: PreTrainedModel, streams: TokenStreams, folder: Path, chunks: int
) -> None:
    """Write `chunks` files of the target's continuations of training text, those not yet there.

    Each file holds ``tokens`` int32 ``[rows, prompt + 128]`` and the target's `TOP` likeliest next
    tokens at every continued place: ``ids`` int16 and ``log_probs`` float16 ``[rows, 128, TOP]``.
    Every third chunk is sampled at temperature 1, the others are greedy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target.generation_config.eos_token_id = None  # a finished document is followed by another
    missing = [i for i in range(chunks) if not (folder / f"{i:04}.safetensors").exists()]
    for index in tqdm(missing, desc="target's continuations", mininterval=5):
        length, rows = SHAPES[index % len(SHAPES)]
        prompts = streams.batch(index, rows, length, WEIGHTS, at_starts=0.5).to(target.device)
        torch.manual_seed(index)
        out = target.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=CONTINUATION,
            do_sample=(index + index // len(SHAPES)) % 3 == 2,
            temperature=1.0,
            top_k=0,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = [step.float().log_softmax(-1).topk(TOP) for step in out.logits]
        partial = folder / "partial"
        save_file(
            {
                "tokens": out.sequences.int().cpu(),
                "ids": torch.stack([b.indices for b in best], 1).short().cpu(),
                "log_probs": torch.stack([b.values for b in best], 1).half().cpu(),
            },
            partial,
        )
        partial.rename(folder / f"{index:04}.safetensors")


def distillation_loss(
    draft: PreTrainedModel, folder: Path, rows: int, seed: int
) -> Callable[[int], Tensor]:
    """The loss of one step: how far the draft is from the target on `rows` continued rows.

    Half is the cross-entropy against the target's distribution (what sampling accepts by), half
    against its likeliest token (what greedy decoding accepts by); plain next-token loss on the
    prompt, at a tenth, keeps the draft a language model.
    """
    chunks = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chunk = chunks[int(torch.randint(len(chunks), (), generator=generator))]
        picked = torch.randperm(len(chunk["tokens"]), generator=generator)[:rows]
        tokens = chunk["tokens"][picked].long().to(draft.device)
        ids = chunk["ids"][picked].long().to(draft.device)
        teacher = chunk["log_probs"][picked].float().softmax(-1).to(draft.device)
        logits = draft(tokens[:, :-1]).logits.float()
        prompt, continued = logits[:, :-CONTINUATION], logits[:, -CONTINUATION:]
        log_q = continued.log_softmax(-1)
        soft = -(teacher * log_q.gather(-1, ids)).sum(-1).mean()
        hard = -log_q.gather(-1, ids[..., :1]).mean()
        text = F.cross_entropy(prompt.flatten(0, 1), tokens[:, 1:-CONTINUATION].flatten())
        return 0.5 * soft + 0.5 * hard + PROMPT_WEIGHT * text

    return loss
