"""What a forward takes: the target's by number of tokens, the draft's by number of branches.

    taskset -c 0 python benchmarks/forwards.py --threads 1

As `transformers` runs them; with every target forward padded to 16 tokens, which makes logits
bit-exact where kernels are not batch-invariant; with weights packed for FBGEMM, or for oneDNN where
float16 does not hold them; compiled; and compiled with int8 layers, where the CPU has VNNI. After
130 tokens of text. The kinds take turns, and the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from tqdm import tqdm

from specbranch.models.cpu.int8 import obstacle
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner

TEXT = 130  # tokens in the cache
TOKENS = (1, 4, 8, 12)
BRANCHES = (1, 4, 12)
LAYERS = 4  # whose hidden states the target gives H-RAD
PADDED = "padded to 16"
INT8 = "compiled, int8"
KINDS = ("transformers", PADDED, "packed", "compiled", INT8)


def made(kind: str, name: str, verifies: bool) -> CausalRunner:
    """A runner of the model, with a text in its cache."""
    runner = CausalRunner(load_model(ModelSpec(name)))
    if kind.startswith("compiled"):
        runner.compile(name, verifies, int8=kind == INT8)
    elif kind == "packed":
        runner.pack()
    aligned = Padding(1, None, aligned=True)
    padding = {"transformers": NATURAL, PADDED: Padding.fixed(16)}.get(kind, aligned)
    runner.open(0, TEXT + 400, padding)
    runner.prefill(0, [5] * TEXT)
    return runner


def verify(runner: CausalRunner, tokens: int) -> float:
    """Seconds of a target forward."""
    begun = time.perf_counter()
    runner.run(0, range(5, 5 + tokens), LAYERS)
    taken = time.perf_counter() - begun
    runner.rewind(0, TEXT)
    return taken


def step(runner: CausalRunner, branches: int) -> float:
    """Seconds of the second draft step of so many branches."""
    ids = runner.fork(0, [TEXT] * branches)
    runner.step(0, dict.fromkeys(ids, 7))
    begun = time.perf_counter()
    runner.step(0, dict.fromkeys(ids, 8))
    taken = time.perf_counter() - begun
    runner.rewind(0, TEXT)
    return taken


def table(
    title: str,
    name: str,
    call: Callable[[CausalRunner, int], float],
    sizes: tuple[int, ...],
    repeats: int,
) -> None:
    """Print medians, in milliseconds."""
    left_out = {PADDED} if call is step else set()
    if obstacle(torch.device("cpu")):
        left_out.add(INT8)
    kinds = [kind for kind in KINDS if kind not in left_out]
    runners = {kind: made(kind, name, verifies=call is verify) for kind in kinds}
    taken = defaultdict(list)
    for _ in tqdm(range(repeats), desc=name, leave=False):
        for kind, runner in runners.items():
            for size in sizes:
                taken[kind, size].append(call(runner, size))
    print(f"| {title} | {' | '.join(map(str, sizes))} |")
    print("|---" * (1 + len(sizes)) + "|")
    for kind in kinds:
        cells = [f"{1e3 * median(taken[kind, size]):.2f}" for size in sizes]
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--target", default="target")
    parser.add_argument("--draft", default="draft")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        table("target, ms by tokens", options.target, verify, TOKENS, options.repeats)
        table("draft step, ms by branches", options.draft, step, BRANCHES, options.repeats)


if __name__ == "__main__":
    main()
