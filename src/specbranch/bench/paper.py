"""The paper's published figures, laid beside ours (Shen et al., ICLR 2026, arXiv 2506.01979)."""

from __future__ import annotations

from dataclasses import dataclass

from specbranch.bench.contenders import ALWAYS_ON
from specbranch.bench.placement import Placement
from specbranch.bench.speed import ALL, Speed

SUITES = ("humaneval", "gsm8k", "cnndm")
POOR, WELL = "poorly aligned", "well aligned"
OURS = {"draft-weak": POOR, "draft": WELL}


@dataclass(frozen=True)
class Published:
    """Speed-up over plain decoding of the target, greedy, by suite as in `SUITES`."""

    pair: str
    regime: str
    method: str
    ratios: tuple[float, ...]


SPEEDS = (
    Published("LLaMA 68M & 7B", POOR, "PEARL", (1.69, 1.86, 1.66)),
    Published("LLaMA 68M & 7B", POOR, "SpecBranch", (2.04, 2.12, 1.87)),
    Published("Vicuna 68M & 13B", POOR, "PEARL", (2.02, 1.61, 1.68)),
    Published("Vicuna 68M & 13B", POOR, "SpecBranch", (2.47, 1.95, 1.89)),
    Published("DeepSeek-Coder 1.3B & 33B", WELL, "PEARL", (3.39, 2.78, 2.63)),
    Published("DeepSeek-Coder 1.3B & 33B", WELL, "SpecBranch", (3.71, 3.02, 2.97)),
    Published("LLaMA-3.1 8B & 70B", WELL, "PEARL", (3.75, 3.35, 3.04)),
    Published("LLaMA-3.1 8B & 70B", WELL, "SpecBranch", (4.02, 3.67, 3.37)),
)
# Rolled-back ÷ all drafted tokens, HumanEval, poorly aligned.
ROLLBACKS = {"sps-8": 0.766, "lookahead": 0.814, "pearl-8": 0.903, ALWAYS_ON: 0.396}
DIFFERENCES = (
    "The paper's pairs have 68M to 70B parameters and run on GPUs; the bundled pair has 27M and "
    "1.7M (or 0.4M) and runs on CPU cores. In both, plain decoding has the target's hardware "
    "alone, and the parallel methods have the draft's besides. The paper's suites are whole, ours "
    "are samples."
)


def beside(rows: list[Speed], labels: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: speed-ups in the paper's setting, the paper's and ours."""
    found = []
    for regime in (POOR, WELL):
        for row in (row for row in SPEEDS if row.regime == regime):
            mean = sum(row.ratios) / len(row.ratios)
            cells = [f"{ratio:.2f}" for ratio in (*row.ratios, mean)]
            found.append([regime, f"paper: {row.pair}", row.method, *cells])
        for draft in (draft for draft, ours in OURS.items() if ours == regime):
            ours = [
                row
                for row in rows
                if (row.draft, row.temperature, row.placement) == (draft, 0, Placement.EACH)
                and row.suite != ALL
            ]
            for name in dict.fromkeys(r.method for r in ours):
                if name.startswith(("pearl", "specbranch")):
                    ratios = {r.suite: r.over_plain.value for r in ours if r.method == name}
                    known = [ratios[s] for s in SUITES if s in ratios]
                    cells = [f"{ratios[s]:.2f}" if s in ratios else "–" for s in SUITES]
                    cells.append(f"{sum(known) / len(known):.2f}" if known else "–")
                    found.append([regime, f"ours: target & {draft}", labels[name], *cells])
    return ["regime", "pair", "method", *SUITES, "mean"], found


def rollbacks(rows: list[Speed], labels: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: rolled-back ÷ all drafted tokens, the paper's and ours."""
    ours = {
        row.method: row
        for row in rows
        if (row.draft, row.temperature, row.suite) == ("draft-weak", 0, "humaneval")
    }
    found = [
        [labels[name], f"{paper:.3f}", f"{ours[name].rollback_of_all:.3f}"]
        for name, paper in ROLLBACKS.items()
        if name in ours
    ]
    return ["method", "paper, poorly aligned", "ours, draft-weak"], found
