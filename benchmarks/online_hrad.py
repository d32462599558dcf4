"""RB and speed of an H-RAD that learns while it is used, against one that was trained before.

    python benchmarks/online_hrad.py --draft draft --plot docs/figures/online.svg SUITE.jsonl …

Virtual time (see `drafting.py`). A stream is one text after another, the suites in turn, until it
has the asked number of tokens; every predictor decodes the same streams and learns from nothing at
the start of each. NgramIndex is off: the predictor has no part in it.
"""

from __future__ import annotations

import argparse
from itertools import chain, islice
from pathlib import Path

import matplotlib.pyplot as plt
import panels
from tqdm import tqdm

from specbranch import LLM, SamplingParams
from specbranch.config import SpeculativeConfig
from specbranch.executors.virtual import Profile
from specbranch.metrics import Metrics, Round
from specbranch.prompts import read_prompts

PREDICTORS = {"no H-RAD": None, "online": "online", "trained before": "auto"}
COLORS = {"no H-RAD": "#b8c4d6", "online": "#e0a458", "trained before": "#d1495b"}
WINDOWS = 8
TEXT = 128  # tokens


def decode(llm: LLM, prompts: list[list[int]], tokens: int) -> list[Round]:
    """The rounds of one stream."""
    llm.reset()
    options = SpeculativeConfig(speculate="always", retrieval=False)
    rounds: list[Round] = []
    for ids in prompts:
        found = llm.generate([ids], SamplingParams(max_tokens=TEXT), config=options)
        rounds += found[0].rounds
    return rounds[: _count(rounds, tokens)]


def _count(rounds: list[Round], tokens: int) -> int:
    seen = 0
    for count, done in enumerate(rounds, 1):
        seen += len(done.tokens)
        if seen >= tokens:
            return count
    return len(rounds)


def by_window(streams: list[list[Round]], tokens: int) -> list[tuple[float, float]]:
    """RB and tokens a second in each of the windows, over all streams."""
    found = []
    for window in range(WINDOWS):
        low, high = (tokens * w / WINDOWS for w in (window, window + 1))
        metrics, seconds = Metrics(), 0.0
        for rounds in streams:
            seen = 0
            for done in rounds:
                if low <= seen < high:
                    metrics.add(done)
                    seconds += done.seconds
                seen += len(done.tokens)
        found.append((metrics.rollback_rate, metrics.committed / seconds))
    return found


def plot(curves: dict[str, list[tuple[float, float]]], tokens: int, file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
    places = [tokens * (w + 0.5) / WINDOWS for w in range(WINDOWS)]
    for label, points in curves.items():
        for axis, values in zip(axes, zip(*points, strict=True), strict=True):
            axis.plot(places, values, "o-", color=COLORS[label], label=label)
    for axis, name in zip(axes, ("RB", "tokens a second, virtual"), strict=True):
        axis.set_xlabel("tokens so far")
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    panels.save(figure, axes, file, columns=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="+", help="JSONL files of prompts")
    parser.add_argument("--draft", default="draft", help="draft or draft-weak")
    parser.add_argument("--c", type=float, default=8.0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2000, help="of a stream")
    parser.add_argument("--skip", type=int, default=20, help="prompts of each suite")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    texts = -(-options.tokens // TEXT) + len(options.suites)  # some end early
    profile = Profile.of_ratio(options.c, 0.03)
    curves = {}
    for label, hrad in PREDICTORS.items():
        with LLM(draft=options.draft, executor="virtual", profile=profile, hrad=hrad) as llm:
            encode = llm.tokenizer
            each = -(-options.streams * texts // len(options.suites))
            suites = [
                islice(read_prompts(file, options.skip + each), options.skip, None)
                for file in options.suites
            ]
            prompts = [
                encode(text, truncation=True, max_length=384)["input_ids"]
                for text in chain.from_iterable(zip(*suites, strict=True))
            ]
            parts = [prompts[i * texts : (i + 1) * texts] for i in range(options.streams)]
            streams = [decode(llm, part, options.tokens) for part in tqdm(parts, desc=label)]
        curves[label] = by_window(streams, options.tokens)
    print("| tokens | " + " | ".join(f"{label}: RB, tokens/s" for label in curves) + " |")
    print("|---" * (len(curves) + 1) + "|")
    for window in range(WINDOWS):
        low, high = (options.tokens * w // WINDOWS for w in (window, window + 1))
        cells = " | ".join(f"{c[window][0]:.2f}, {c[window][1]:.0f}" for c in curves.values())
        print(f"| {low}-{high} | {cells} |")
    if options.plot:
        plot(curves, options.tokens, options.plot)


if __name__ == "__main__":
    main()
