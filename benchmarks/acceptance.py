"""Tokens per target call (M) and rollback rate (RB) of each method and draft, and losslessness.

    python benchmarks/acceptance.py --prompts 20 --plot docs/figures/acceptance.svg SUITE.jsonl …

Counts, not timings: they do not depend on the machine's speed. Every text is compared with plain
decoding's, token by token. Greedy. Prompts longer than 512 tokens are cut there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from tqdm import tqdm

from specbranch import LLM, SamplingParams
from specbranch.decoders import DecodingOptions
from specbranch.metrics import Metrics
from specbranch.prompts import read_prompts

METHODS = {
    "SpS, γ = 4": ("speculative", DecodingOptions(gamma=4)),
    "SpS, γ = 8": ("speculative", DecodingOptions(gamma=8)),
    "SpecBranch, one branch point, γ = 8, ε = 0.4": (
        "specbranch",
        DecodingOptions(gamma=8, epsilon=0.4, branching="point"),
    ),
}
DRAFTS = ("draft", "draft-weak")
MOST_PROMPT_TOKENS = 512

Figures = dict[tuple[str, str], dict[str, Metrics]]


def measure(files: list[Path], count: int, max_tokens: int) -> tuple[Figures, int, int]:
    """Metrics by (draft, method) and suite; how many texts were compared, how many differed."""
    found: Figures = {}
    params = SamplingParams(max_tokens=max_tokens)
    plain = LLM(draft=None)
    prompts = {
        file.stem: [
            plain.tokenizer(text)["input_ids"][:MOST_PROMPT_TOKENS]
            for text in read_prompts(file, count)
        ]
        for file in files
    }
    texts = {
        suite: [o.outputs[0].token_ids for o in plain.generate(ids, params, progress=True)]
        for suite, ids in prompts.items()
    }
    compared = differing = 0
    for draft in DRAFTS:
        for label, (method, decoding) in METHODS.items():
            with LLM(draft=draft, method=method, lanes="inline") as llm:
                for suite, ids in prompts.items():
                    total = Metrics()
                    rows = zip(ids, texts[suite], strict=True)
                    for prompt, text in tqdm(list(rows), desc=f"{draft}, {label}, {suite}"):
                        output = llm.generate([prompt], params, options=decoding)[0]
                        total += output.metrics
                        compared += 1
                        differing += output.outputs[0].token_ids != text
                    found.setdefault((draft, label), {})[suite] = total
    return found, compared, differing


def table(found: Figures, suites: list[str]) -> str:
    """M and RB by draft, method and suite, as Markdown; the last column averages the suites."""
    lines = [f"| draft | method | {' | '.join(suites)} | mean M | mean RB |"]
    lines.append("|---|---|" + "---|" * (len(suites) + 2))
    for (draft, label), by_suite in found.items():
        values = [(m.mean_accepted_length, m.rollback_rate) for m in by_suite.values()]
        cells = " | ".join(f"M {m:.2f}, RB {rb:.2f}" for m, rb in values)
        mean_m, mean_rb = (sum(column) / len(values) for column in zip(*values, strict=True))
        lines.append(f"| {draft} | {label} | {cells} | {mean_m:.2f} | {mean_rb:.2f} |")
    return "\n".join(lines)


def plot(found: Figures, file: Path) -> None:
    """Two panels of bars, M and RB, averaged over the suites."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    colors = ("#b8c4d6", "#7d93b5", "#d1495b")
    panels = (
        ("mean_accepted_length", "tokens per target call (M)"),
        ("rollback_rate", "rolled-back share of drafted tokens (RB)"),
    )
    for axis, (name, title) in zip(axes, panels, strict=True):
        for place, label in enumerate(METHODS):
            values = []
            for draft in DRAFTS:
                by_suite = found[draft, label].values()
                values.append(sum(getattr(m, name) for m in by_suite) / len(by_suite))
            at = [x + 0.26 * (place - 1) for x in range(len(DRAFTS))]
            bars = axis.bar(at, values, 0.24, color=colors[place], label=label)
            axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(DRAFTS)), ["aligned draft (1.7M)", "weak draft (0.4M)"])
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.15)
    axes[0].axhline(1, color="grey", lw=0.8, ls=":", label="plain decoding")
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="+", help="JSONL files of prompts")
    parser.add_argument("--prompts", type=int, default=20, help="prompts a suite")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    found, compared, differing = measure(options.suites, options.prompts, options.max_tokens)
    print(table(found, [file.stem for file in options.suites]))
    print(f"\n{compared - differing} of {compared} texts are plain decoding's, token by token")
    if options.plot:
        plot(found, options.plot)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
