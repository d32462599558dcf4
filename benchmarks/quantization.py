"""How far a target with int8 layers is from the one it was made of, and how fast they are.

    python benchmarks/quantization.py SUITE.jsonl …

Both read the same text: prompts, and what the original continues them with, greedily. Printed is
how often their likeliest next tokens differ, the divergence of their distributions, the perplexity
of each on the text, and how often a draft's likeliest token is theirs. Then what a square linear
layer takes with float16 weights and in int8, one after the other over more of them than fit in a
cache, uncompiled.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from tqdm import tqdm

from specbranch import LLM, SamplingParams
from specbranch.models.cpu.prepacking import pack_layers
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.runner import CausalRunner
from specbranch.prompts import read_prompts

CHUNK = 64
WIDTHS = (512, 2048, 4096)
ROWS = (1, 8, 16)
WEIGHTS = 60_000_000  # of all layers of a width together
REPEATS = 15


def read(runner: CausalRunner, text: list[int]) -> Tensor:
    """Log-probabilities after every token, ``[tokens, vocabulary]``."""
    runner.open(0, len(text))
    parts = [runner.run(0, text[i : i + CHUNK]).logits for i in range(0, len(text), CHUNK)]
    runner.close(0)
    return torch.cat(parts).log_softmax(-1)


def microseconds(width: int, int8: bool) -> list[float]:
    """Of a layer, by rows."""
    layers = nn.Sequential()
    for _ in range(WEIGHTS // width**2):
        layer = nn.Linear(width, width, bias=False)
        layer.weight.data = layer.weight.data.bfloat16().float()
        layers.append(layer)
    pack_layers(layers, int8)
    found = []
    for rows in ROWS:
        x, taken = torch.randn(rows, width), []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            for packed in layers:
                packed(x)
            taken.append((time.perf_counter() - begun) / len(layers))
        found.append(1e6 * median(taken))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="+", help="JSONL files of prompts")
    parser.add_argument("--target", default="target")
    parser.add_argument("--draft", default="draft")
    parser.add_argument("--limit", type=int, default=10, help="prompts of each suite")
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args()
    prompts = [p for file in options.suites for p in read_prompts(file, options.limit)]
    params = SamplingParams(max_tokens=options.max_tokens, ignore_eos=True)
    with LLM(options.target, None, method="autoregressive", max_model_len=1024) as llm:
        found = llm.generate([llm.tokenizer(p)["input_ids"][:512] for p in prompts], params)
        texts = [[*one.prompt_token_ids, *one.outputs[0].token_ids] for one in found]
    spec = ModelSpec(options.target, dtype="float32")
    original, ours = (CausalRunner(load_model(spec)) for _ in range(2))
    original.pack()
    ours.pack(int8=True)
    draft = CausalRunner(load_model(ModelSpec(options.draft)))
    rows = flipped = 0
    divergence = agreed = agreed8 = loss = loss8 = 0.0
    for text in tqdm(texts, leave=False):
        p, p8, q = (read(runner, text)[:-1] for runner in (original, ours, draft))
        said, said8, guessed = (x.argmax(1) for x in (p, p8, q))
        following = torch.tensor(text[1:])[:, None]
        rows += len(p)
        flipped += int((said != said8).sum())
        agreed += int((guessed == said).sum())
        agreed8 += int((guessed == said8).sum())
        divergence += (p.exp() * (p - p8)).sum().item()
        loss -= p.gather(1, following).sum().item()
        loss8 -= p8.gather(1, following).sum().item()
    print(f"{rows} tokens of {len(texts)} texts")
    print(f"another likeliest token: {100 * flipped / rows:.2f} %")
    print(f"mean KL divergence: {divergence / rows:.5f} nats")
    perplexities = (torch.tensor([loss, loss8]) / rows).exp().tolist()
    print("perplexity: {:.4f} original, {:.4f} int8".format(*perplexities))
    print(
        f"the draft agrees: {agreed / rows:.4f} with the original, {agreed8 / rows:.4f} with int8"
    )
    print(f"\n| width | weights | {' | '.join(f'{rows} rows' for rows in ROWS)} |")
    print("|---" * (2 + len(ROWS)) + "|")
    for width in WIDTHS:
        for int8 in (False, True):
            cells = " | ".join(f"{value:.0f} µs" for value in microseconds(width, int8))
            print(f"| {width} | {'int8' if int8 else 'float16'} | {cells} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
