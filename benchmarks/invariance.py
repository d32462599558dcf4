"""Does a token's logits depend on how many tokens are run with it? Counted row by row.

    python benchmarks/invariance.py --tokens 1250 SUITE.jsonl

The target reads text one token at a time, and again in chunks of 2, 3, … 17 tokens, the padding
of a
verification. Every row of logits that is not bit-identical to the first reading's is counted, and
every one that would choose another token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from specbranch.models.loader import ModelSpec, load_model, load_tokenizer
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from
from specbranch.prompts import read_prompts

MAX_QUERY_LENGTH = 17
TEXT = 512  # tokens that are read from one prompt
KINDS = (
    "transformers, natural widths",
    "padding=auto, packed",
    "padding=auto, compiled",
    "padding=16, compiled",
    "padding=auto, compiled, int8",
)


def made(kind: str, name: str) -> tuple[CausalRunner, Padding]:
    """A runner, and the padding of its forwards."""
    runner = CausalRunner(load_model(ModelSpec(name)))
    if kind.startswith("transformers"):
        return runner, NATURAL
    if "compiled" in kind:
        runner.compile(name, verifies=True, int8=kind.endswith("int8"))
    else:
        runner.pack()
    if kind.startswith("padding=16"):
        return runner, Padding.fixed(16)
    return runner, Padding.pick("auto", invariant_from(runner))


def read(runner: CausalRunner, padding: Padding, texts: list[list[int]], chunk: int) -> Tensor:
    """Logits of every token, ``[tokens, vocabulary]``."""
    rows = []
    for text in texts:
        runner.open(0, len(text), padding)
        rows += [runner.run(0, text[i : i + chunk]).logits for i in range(0, len(text), chunk)]
        runner.close(0)
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="+", help="JSONL files of prompts")
    parser.add_argument("--model", default="target")
    parser.add_argument("--tokens", type=int, default=1250)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:-1])
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    texts: list[list[int]] = []
    left = options.tokens
    for prompt in (p for file in options.suites for p in read_prompts(file, 20)):
        if left > 0:
            ids = tokenizer(prompt, truncation=True, max_length=TEXT)["input_ids"]
            texts.append(ids[:left])
            left -= len(texts[-1])
    print("| forwards | rows compared | not bit-identical | other token | largest difference |")
    print("|---|---|---|---|---|")
    for kind in options.kinds:
        runner, padding = made(kind, options.model)
        expected = read(runner, padding, texts, 1)
        rows = differing = flipped = 0
        largest = 0.0
        for chunk in tqdm(range(2, MAX_QUERY_LENGTH + 1), desc=kind, leave=False):
            found = read(runner, padding, texts, chunk)
            rows += len(found)
            differing += int((found != expected).any(1).sum())
            flipped += int((found.argmax(1) != expected.argmax(1)).sum())
            largest = max(largest, (found - expected).abs().max().item())
        print(f"| {kind} | {rows} | {differing} | {flipped} | {largest:.1e} |", flush=True)


if __name__ == "__main__":
    main()
