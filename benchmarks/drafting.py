"""Drafting rules in virtual time: branches, ablations and the threshold ε, by draft and domain.

    python benchmarks/drafting.py --draft draft --c 8 16 --prompts 3 SUITE.jsonl …

The real algorithm on the real pair, timed by a profile instead of by this machine: a target forward
takes c draft steps, and each further branch adds 3 % to a draft step (or times come from
``--profile``). So differences of a few per cent show. Greedy; prompts are cut at 384 tokens.
Speculation is always on, and every rule learns from nothing, in the order of the prompts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import matplotlib.pyplot as plt
import panels
from tqdm import tqdm

from specbranch import LLM, SamplingParams
from specbranch.config import SpeculativeConfig
from specbranch.executors.virtual import Profile
from specbranch.metrics import Metrics, Round
from specbranch.prompts import read_prompts

MOST_PROMPT_TOKENS = 384
BRANCH_COST = 0.03  # of a draft step, for each further branch

FULL = SpeculativeConfig(speculate="always")
# Rules of branching are compared without retrieval, which has a share in all of them alike.
BRANCHES = replace(FULL, retrieval=False)
ONE_POINT = replace(BRANCHES, branching="point")
RULES = {
    "one branch point, ε = 0.3 (the paper's rule)": replace(ONE_POINT, epsilon=0.3),
    "one branch point": ONE_POINT,
    "even fan-out": replace(BRANCHES, branching="even"),
    "outcome branches": BRANCHES,
}
ALONE = replace(FULL, branching="point", k_max=1)
ABLATIONS = {
    "full": FULL,
    "no H-RAD": replace(FULL, use_hrad=False),
    "no branches": ALONE,
    "neither": replace(ALONE, use_hrad=False),
    "no retrieval": BRANCHES,
    "no retrieval, no H-RAD": replace(BRANCHES, use_hrad=False),
    "no retrieval, no branches": replace(ONE_POINT, k_max=1),
    "none of the three": replace(ONE_POINT, k_max=1, use_hrad=False),
    "one branch point, k_max = 12": replace(ONE_POINT, k_max=12),
    "one branch point, k_max = 12, ε = 0.3": replace(ONE_POINT, k_max=12, epsilon=0.3),
}
SECTIONS = ("branches", "ablations", "thresholds")
WIDTHS = (1, 2, 4, 8, 12)
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Found:
    """Of one rule over the prompts of one suite."""

    metrics: Metrics
    rounds: list[Round]

    def __add__(self, other: Found) -> Found:
        return Found(self.metrics + other.metrics, self.rounds + other.rounds)

    @property
    def speed(self) -> float:
        """Tokens a second of virtual decoding time."""
        return self.metrics.committed / sum(done.seconds for done in self.rounds)

    @property
    def hits(self) -> float:
        """CpuAffinity of the rounds in which a branch survived."""
        return self.metrics.hits / len(self.rounds)


class Bench:
    """One pair on virtual executors, and the prompts by suite."""

    def __init__(self, draft: str, profile: Profile, files: list[Path], count: int, tokens: int):
        self._llm = LLM(draft=draft, executor="virtual", profile=profile)
        encode = self._llm.tokenizer
        self._prompts = {
            file.stem: [
                encode(text, truncation=True, max_length=MOST_PROMPT_TOKENS)["input_ids"]
                for text in read_prompts(file, count)
            ]
            for file in files
        }
        self._params = SamplingParams(max_tokens=tokens)
        self.plain = self.run(FULL, "autoregressive", "plain decoding")

    def run(self, options: SpeculativeConfig, method: str, label: str) -> dict[str, Found]:
        """By suite. What an earlier run learned is forgotten."""
        self._llm.reset()
        found = {}
        for suite, prompts in tqdm(self._prompts.items(), desc=label, leave=False):
            outputs = [
                self._llm.generate([ids], self._params, method=method, config=options)[0]
                for ids in prompts
            ]
            rounds = [done for output in outputs for done in output.rounds]
            found[suite] = Found(reduce(add, (o.metrics for o in outputs)), rounds)
        return found

    def over_plain(self, found: dict[str, Found]) -> list[float]:
        """Ratios of speed to plain decoding's: one a suite, and their mean."""
        ratios = [found[suite].speed / self.plain[suite].speed for suite in found]
        return [*ratios, sum(ratios) / len(ratios)]


def branches(bench: Bench) -> dict[str, list[tuple[int, float, Found]]]:
    """By rule and k_max: the mean ratio to plain decoding, and everything together."""
    table: dict[str, list[tuple[int, float, Found]]] = {}
    for label, rule in RULES.items():
        for k in WIDTHS:
            found = bench.run(replace(rule, k_max=k), "specbranch", f"{label}, k_max = {k}")
            together = reduce(Found.__add__, found.values())
            table.setdefault(label, []).append((k, bench.over_plain(found)[-1], together))
    return table


def print_branches(table: dict[str, list[tuple[int, float, Found]]]) -> None:
    print("| rule | k_max | × plain | hit rate | M | RB |")
    print("|---|---|---|---|---|---|")
    for label, rows in table.items():
        for k, ratio, found in rows:
            m = found.metrics
            print(
                f"| {label} | {k} | {ratio:.2f} | {found.hits:.2f} | "
                f"{m.mean_accepted_length:.2f} | {m.rollback_rate:.2f} |"
            )


def print_by_suite(bench: Bench, rows: dict[str, SpeculativeConfig]) -> None:
    print(f"| rule | {' | '.join(bench.plain)} | mean × plain | M | RB |")
    print("|---" * (len(bench.plain) + 4) + "|")
    for label, options in rows.items():
        found = bench.run(options, "specbranch", label)
        m = reduce(Found.__add__, found.values()).metrics
        ratios = " | ".join(f"{ratio:.2f}" for ratio in bench.over_plain(found))
        figures = f"{m.mean_accepted_length:.2f} | {m.rollback_rate:.2f}"
        print(f"| {label} | {ratios} | {figures} |", flush=True)


def plot(tables: dict[str, dict[str, list[tuple[int, float, Found]]]], file: Path) -> None:
    """Speed and hit rate against k_max, a row of panels for each profile."""
    figure, axes = plt.subplots(
        len(tables), 2, figsize=(9, 3.1 * len(tables)), layout="constrained", squeeze=False
    )
    colors = ("#7d93b5", "#b8c4d6", "#e0a458", "#d1495b")
    for row, (name, table) in zip(axes, tables.items(), strict=True):
        for (label, points), color in zip(table.items(), colors, strict=True):
            widths = [k for k, _, _ in points]
            row[0].plot(widths, [ratio for _, ratio, _ in points], "o-", color=color, label=label)
            row[1].plot(widths, [found.hits for _, _, found in points], "o-", color=color)
        row[0].set_ylabel(f"{name}: speed ÷ plain decoding")
        row[1].set_ylabel("rounds in which a branch survived")
        row[1].set_ylim(0, 1)
        for axis in row:
            axis.set_xticks(WIDTHS)
            axis.set_xlabel("k_max, most branches in a round")
    panels.save(figure, axes, file, columns=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="+", help="JSONL files of prompts")
    parser.add_argument("--draft", default="draft", help="draft or draft-weak")
    parser.add_argument("--c", type=float, nargs="+", default=[8.0, 16.0])
    parser.add_argument(
        "--profile", type=Path, help="instead of c: times of both executors as JSON"
    )
    parser.add_argument("--prompts", type=int, default=3, help="prompts a suite")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    profiles = {f"c = {c:g}": Profile.of_ratio(c, BRANCH_COST) for c in options.c}
    if options.profile:
        profiles = {options.profile.stem: Profile.load(options.profile)}
    drawn = {}
    for name, profile in profiles.items():
        bench = Bench(options.draft, profile, options.suites, options.prompts, options.max_tokens)
        print(f"\n## {options.draft}, {name}", flush=True)
        if "branches" in options.sections:
            drawn[name] = branches(bench)
            print("\n### Branches\n")
            print_branches(drawn[name])
        if "ablations" in options.sections:
            print("\n### Ablations\n", flush=True)
            print_by_suite(bench, ABLATIONS)
        if "thresholds" in options.sections:
            print("\n### Threshold\n", flush=True)
            thresholds = {
                f"ε = {epsilon}, {label}": replace(FULL, epsilon=epsilon, use_hrad=hrad)
                for hrad, label in ((True, "H-RAD"), (False, "no H-RAD"))
                for epsilon in THRESHOLDS
            }
            print_by_suite(bench, thresholds)
        if options.plot and drawn:  # also what there is after an interrupt
            plot(drawn, options.plot)


if __name__ == "__main__":
    main()
