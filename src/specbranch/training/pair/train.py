"""The recipe of the bundled pair: ``python -m specbranch.training.pair.train``.

Stages, each resumable and skipped when its result is there: tokenizer, draft-weak, target (by
progressive stacking: a trained model's layers are duplicated to start one twice as deep),
continuations (the target's own text), draft (distilled on it).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from specbranch.errors import SpecBranchError
from specbranch.training.pair.corpus import (
    END_OF_TEXT,
    TokenStreams,
    documents,
    start_with_end_of_text,
    train_tokenizer,
)
from specbranch.training.pair.distill import CONTINUATION, distillation_loss, write_continuations
from specbranch.training.pair.fit import Limit, fit, muon_and_adamw

CONTEXT = 1024
VOCABULARY = 4096
WEIGHTS = {"code": 0.5, "math": 0.22, "news": 0.16, "encyclopedia": 0.12}
DRAFT_ROWS = 24


def new_model(width: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights; the MLP is about 8/3 of the width."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def stacked(model: PreTrainedModel) -> LlamaForCausalLM:
    """A model twice as deep in which every layer of `model` stands twice in a row."""
    config = LlamaConfig.from_dict(
        {**model.config.to_dict(), "num_hidden_layers": 2 * model.config.num_hidden_layers}
    )
    deeper = LlamaForCausalLM(config)
    state = {}
    for name in deeper.state_dict():
        parts = name.split(".")
        if "layers" in parts:
            parts[2] = str(int(parts[2]) // 2)
        state[name] = model.state_dict()[".".join(parts)]
    deeper.load_state_dict(state)
    return deeper


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write an ordinary Hugging Face folder: bfloat16 weights, configuration, tokenizer."""
    partial = folder.with_suffix(".partial")
    model.to(torch.bfloat16).save_pretrained(partial)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    ).save_pretrained(partial)
    partial.rename(folder)


class Recipe:
    """The stages over one output folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.device = torch.device(options.device)
        docs = documents(options.corpus)
        file = self.out / "tokenizer.json"
        if options.tokenizer:
            tokenizer = Tokenizer.from_file(str(options.tokenizer))
        elif file.exists():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            tokenizer = train_tokenizer(docs, VOCABULARY)
        start_with_end_of_text(tokenizer)
        self.out.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(file))
        self.tokenizer = tokenizer
        self.streams = TokenStreams(docs, tokenizer, options.seed)

    def _finish(self, name: str, model: PreTrainedModel, tokens: int, loss: float) -> None:
        save(model, self.tokenizer, self.out / name)
        record = {"tokens": tokens, "training_loss": round(loss, 3)}
        (self.out / name / "training.json").write_text(json.dumps(record) + "\n")

    def _text_loss(
        self, model: PreTrainedModel, rows: int, length: int, first_batch: int = 0
    ) -> Callable[[int], Tensor]:
        """Mean next-token cross-entropy in nats on the corpus' batch of a step."""

        def loss(step: int) -> Tensor:
            batch = self.streams.batch(first_batch + step, rows, length + 1, WEIGHTS)
            tokens = batch.to(self.device)
            logits = model(tokens[:, :-1]).logits
            return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

        return loss

    def draft_weak(self) -> None:
        torch.manual_seed(self.options.seed)
        model = new_model(64, 2, 2).to(self.device)
        rows, length = 24, 256
        steps = self.options.draft_weak_tokens // (rows * length)

        loss = self._text_loss(model, rows, length)
        checkpoint = self.out / "checkpoints/draft-weak.pt"
        optimizers = muon_and_adamw(model, 0.02)
        value = fit(model, loss, optimizers, Limit(steps), checkpoint, "draft-weak")
        self._finish("draft-weak", model, steps * rows * length, value)

    def target(self) -> None:
        """Train 2, 4 and 8 layers, or train a given model on; rows grow to the full context."""
        torch.manual_seed(self.options.seed)
        budgets: list[int] = self.options.target_tokens
        if self.options.init_target:
            model = LlamaForCausalLM.from_pretrained(self.options.init_target, dtype=torch.float32)
            budgets = budgets[-1:]
        else:
            model = new_model(512, 2, 8)
        whole, before, value = sum(budgets), 0, 0.0
        for stage, budget in enumerate(budgets):
            if stage:
                model = stacked(model)
            model.to(self.device)
            rows, length = (4, CONTEXT) if stage == len(budgets) - 1 else (12, 256)
            steps = budget // (rows * length)

            layers = model.config.num_hidden_layers
            value = fit(
                model,
                self._text_loss(model, rows, length, first_batch=stage * 1_000_000),
                muon_and_adamw(model, self.options.target_lr),
                Limit(steps),
                self.out / f"checkpoints/target-{layers}.pt",
                f"target, {layers} layers",
                lambda share, b=budget, done=before: (done + share * b) / whole,  # type: ignore[misc]
            )
            before += budget
        self._finish("target", model, whole, value)

    def continuations(self) -> None:
        target = LlamaForCausalLM.from_pretrained(self.out / "target", dtype=torch.float32)
        write_continuations(
            target.to(self.device), self.streams, self.out / "continuations", self.options.chunks
        )

    def draft(self) -> None:
        torch.manual_seed(self.options.seed)
        if self.options.init_draft:
            model = LlamaForCausalLM.from_pretrained(self.options.init_draft, dtype=torch.float32)
        else:
            model = new_model(192, 2, 4)
        model.to(self.device)
        steps = self.options.draft_tokens // (DRAFT_ROWS * CONTINUATION)
        loss = distillation_loss(model, self.out / "continuations", DRAFT_ROWS, self.options.seed)
        checkpoint = self.out / "checkpoints/draft.pt"
        optimizers = muon_and_adamw(model, self.options.draft_lr)
        value = fit(model, loss, optimizers, Limit(steps), checkpoint, "draft")
        self._finish("draft", model, steps * DRAFT_ROWS * CONTINUATION, value)


STAGES = ("draft-weak", "target", "continuations", "draft")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m specbranch.training.pair.train", description=__doc__
    )
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder with *.jsonl and *.txt training text")
    add("--out", type=Path, required=True, help="folder of results and checkpoints")
    add("--stage", choices=STAGES, action="append", help="only this stage (repeatable)")
    add("--device", default="cpu")
    add("--seed", type=int, default=0)
    add("--tokenizer", type=Path, help="use this tokenizer.json instead of training one")
    add("--init-target", type=Path, help="train this target on instead of stacking one afresh")
    add("--init-draft", type=Path, help="distil this draft on instead of one with random weights")
    add("--target-tokens", type=int, nargs="+", default=[3_600_000, 2_400_000, 4_800_000],
        help="tokens for 2, 4 and 8 layers; with --init-target only the last counts")  # fmt: skip
    add("--target-lr", type=float, default=0.02)
    add("--draft-weak-tokens", type=int, default=1_500_000)
    add("--chunks", type=int, default=120, help="files of about 70 continuations of 128 tokens")
    add("--draft-tokens", type=int, default=12_000_000, help="continued tokens to distil on")
    add("--draft-lr", type=float, default=0.02)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        recipe = Recipe(options)
        for stage in options.stage or STAGES:
            if stage != "continuations" and (options.out / stage).exists():
                print(f"{stage}: already in {options.out / stage}")
                continue
            for leftover in options.out.glob("*.partial"):
                shutil.rmtree(leftover)
            getattr(recipe, stage.replace("-", "_"))()
    except SpecBranchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
