"""The model card of a pair: ``python -m specbranch.training.pair.card``.

Measures validation loss, and on the target's own greedy continuations of evaluation prompts each
draft's agreement and calibration.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specbranch.errors import SpecBranchError
from specbranch.prompts import read_jsonl, read_prompts
from specbranch.training.pair.corpus import TokenStreams, documents, math_text

SUITES = ("humaneval", "gsm8k", "cnndm", "spec_bench")
DRAFTS = ("draft", "draft-weak")
CONTINUATION = 128
PROMPT = 512
BINS = (0.0, 0.1, 0.4, 0.7, 0.9, 1.0)
LICENCES = {
    "code": "Python standard library (PSF-2.0), installed packages (BSD, Apache-2.0, MIT)",
    "math": "GSM8K train (MIT)",
    "news": "CNN/DailyMail articles (Apache-2.0 release)",
    "encyclopedia": "WikiText-2 (CC BY-SA 3.0)",
}


@dataclass(frozen=True)
class Agreement:
    """A draft against the target's greedy text.

    Attributes:
        matches: whether the draft's likeliest token is the target's, bool ``[tokens]``.
        confidences: the draft's raw top probability there, float32 ``[tokens]``.
    """

    matches: Tensor
    confidences: Tensor

    @property
    def rate(self) -> float:
        return self.matches.float().mean().item()


@torch.inference_mode()
def continue_greedily(
    target: PreTrainedModel, prompts: list[list[int]], title: str
) -> list[Tensor]:
    """The target's greedy continuation of each prompt, int64 ``[≤ 128]``, end of text included."""
    texts = []
    for ids in tqdm(prompts, desc=title, mininterval=5):
        inputs = torch.tensor([ids], device=target.device)
        mask = torch.ones_like(inputs)
        out = target.generate(
            inputs,
            attention_mask=mask,
            max_new_tokens=CONTINUATION,
            do_sample=False,
            pad_token_id=0,
        )
        texts.append(out[0, len(ids) :])
    return texts


@torch.inference_mode()
def agreement(draft: PreTrainedModel, prompts: list[list[int]], texts: list[Tensor]) -> Agreement:
    """How often, and how confidently, the draft's likeliest token is the target's."""
    matches, confidences = [], []
    for ids, text in zip(prompts, texts, strict=True):
        tokens = torch.cat([torch.tensor(ids, device=text.device), text])[None]
        probabilities = draft(tokens).logits[0, len(ids) - 1 : -1].float().softmax(-1)
        top = probabilities.max(-1)
        matches.append(top.indices == text)
        confidences.append(top.values)
    return Agreement(torch.cat(matches), torch.cat(confidences))


@torch.inference_mode()
def text_loss(model: PreTrainedModel, rows: Tensor) -> float:
    """Mean next-token cross-entropy in nats over int64 ``[rows, length]``."""
    losses = []
    for row in rows.split(8):
        logits = model(row[:, :-1].to(model.device)).logits.float()
        losses.append(
            F.cross_entropy(logits.flatten(0, 1), row[:, 1:].flatten().to(model.device)) * len(row)
        )
    return (torch.stack(losses).sum() / len(rows)).item()


def eval_texts(folder: Path) -> dict[str, list[str]]:
    """Evaluation texts that are no training text: solutions, answers, articles."""
    code = [r["prompt"] + r["canonical_solution"] for r in read_jsonl(folder / "humaneval.jsonl")]
    math = [math_text(row) for row in read_jsonl(folder / "gsm8k.jsonl")]
    news = [row["turns"][0] for row in read_jsonl(folder / "cnndm.jsonl")]
    return {"humaneval": code, "gsm8k": math, "cnndm": news}


def calibration_table(found: dict[str, Agreement]) -> list[str]:
    """Acceptance by confidence of each draft, over all suites, as a Markdown table."""
    edges = list(itertools.pairwise(BINS))
    head = " | ".join(f"{low:g}-{high:g}" for low, high in edges)
    lines = [
        f"| draft | {head} | expected calibration error |",
        "|---|" + "---|" * (len(edges) + 1),
    ]
    for draft, result in found.items():
        cells, error = [], 0.0
        for low, high in edges:
            inside = (result.confidences > low) & (result.confidences <= high)
            share = inside.float().mean().item()
            rate = result.matches[inside].float().mean().item() if share else float("nan")
            mean = result.confidences[inside].mean().item() if share else rate
            error += share * abs(rate - mean) if share else 0.0
            cells.append(f"{rate:.2f} ({share:.0%})")
        lines.append(f"| {draft} | {' | '.join(cells)} | {error:.3f} |")
    return lines


def measure(pair: Path, corpus: Path, evaluation: Path, most: int, device: str) -> str:
    """The card's measured part, as Markdown."""

    def model(name: str) -> PreTrainedModel:
        loaded = AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.float32)
        return loaded.to(device).eval()

    models = {name: model(name) for name in ("target", *DRAFTS)}
    tokenizer = AutoTokenizer.from_pretrained(pair / "target")
    backend = Tokenizer.from_file(str(pair / "target/tokenizer.json"))
    streams = TokenStreams(documents(corpus), backend, seed=0)

    lines = ["## Models", "", "| model | parameters | file | trained on | width × layers |"]
    lines.append("|---|---|---|---|---|")
    for name, m in models.items():
        size = (pair / name / "model.safetensors").stat().st_size / 1e6
        tokens = json.loads((pair / name / "training.json").read_text())["tokens"]
        shape = f"{m.config.hidden_size} × {m.config.num_hidden_layers}"
        lines.append(
            f"| {name} | {m.num_parameters() / 1e6:.2f}M | {size:.1f} MB | "
            f"{tokens / 1e6:.2f}M tokens | {shape} |"
        )

    held_out = dict(streams.held_out_rows(512, 24))
    fresh = {}
    for suite, texts in eval_texts(evaluation).items():
        ids = [0, *(i for text in texts for i in tokenizer(text)["input_ids"])]
        rows = min(24, len(ids) // 512)
        fresh[f"{suite} (eval)"] = torch.tensor(ids[: rows * 512]).view(rows, 512)
    columns = held_out | fresh
    lines += ["", "## Validation loss (nats per token, rows of 512 tokens)", ""]
    lines.append(f"| model | {' | '.join(columns)} |")
    lines.append("|---|" + "---|" * len(columns))
    for name, m in models.items():
        cells = [f"{text_loss(m, rows):.2f}" for rows in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")

    table: dict[str, dict[str, Agreement]] = {draft: {} for draft in DRAFTS}
    for suite in SUITES:
        texts = read_prompts(evaluation / f"{suite}.jsonl", most)
        prompts = [tokenizer(text)["input_ids"][:PROMPT] for text in texts]
        written = continue_greedily(models["target"], prompts, suite)
        for draft in DRAFTS:
            table[draft][suite] = agreement(models[draft], prompts, written)
    lines += ["", f"## Top-1 agreement on the target's greedy text ({most} prompts a suite)", ""]
    lines.append(f"| draft | {' | '.join(SUITES)} | mean |")
    lines.append("|---|" + "---|" * (len(SUITES) + 1))
    for draft, by_suite in table.items():
        rates = [by_suite[suite].rate for suite in SUITES]
        row = " | ".join(f"{rate:.3f}" for rate in [*rates, sum(rates) / len(rates)])
        lines.append(f"| {draft} | {row} |")

    lines += ["", "## Acceptance by confidence (share of tokens)", ""]
    lines += calibration_table(
        {
            draft: Agreement(
                torch.cat([a.matches for a in by_suite.values()]),
                torch.cat([a.confidences for a in by_suite.values()]),
            )
            for draft, by_suite in table.items()
        }
    )
    lines += ["", "## Corpora", ""]
    lines += [f"- {domain}: {licence}" for domain, licence in LICENCES.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m specbranch.training.pair.card", description=__doc__
    )
    parser.add_argument("--pair", type=Path, required=True, help="folder with the three models")
    parser.add_argument("--corpus", type=Path, required=True, help="training text")
    parser.add_argument("--eval", type=Path, required=True, help="folder with the four suites")
    parser.add_argument("--prompts", type=int, default=40, help="prompts a suite")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        print(measure(options.pair, options.corpus, options.eval, options.prompts, options.device))
    except SpecBranchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
