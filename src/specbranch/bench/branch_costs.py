"""What k branches cost, item by item, and what they gain all the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from specbranch.bench.contenders import Pair
from specbranch.bench.plot_file import check_file
from specbranch.bench.run import WARM_UP
from specbranch.bench.spread import Spread
from specbranch.bench.trials import ROOM, STEPS, Trials
from specbranch.config import MOST_BRANCHES, SpeculativeConfig
from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.metrics import Metrics
from specbranch.sampling_params import SamplingParams

WIDTHS = (1, 2, 4, 6, 8, MOST_BRANCHES)

HEADINGS = [
    "k",
    "draft step, ms",
    "planning, µs",
    "message, µs",
    "KV held, KiB (share)",
    "KV reserved, KiB",
    "target's slow-down",
    "tokens/s",
    "speed ÷ k = 1",
]


@dataclass(frozen=True)
class BranchCost:
    """Of rounds of k branches. But for the speeds these are medians of trials.

    A trial is a round of which nothing is committed (see `trials`); each of its draft steps is one
    of k branches.

    Attributes:
        k: branches in a round.
        step: seconds of a draft step, on the draft executor beside a verification: of a branch
            call of
            `STEPS` steps, a step's share of what it takes longer than one of none.
        planning: seconds that a branch call of no steps takes on the draft executor: choosing the k
            outcomes, forking the cache. Of virtual executors, all that their profile has besides
            forwards (`ModelLatency.call`).
        message: seconds that a round's branch call spends on its way: from the decoder's request
            to its start on the executor, and from its end, or from when the decoder began to wait
            for
            that, to the decoder having the branches. None on virtual executors.
        kv_bytes: of the draft's keys and values that the branches do not share with the text, when
            the verification has ended.
        kv_share: the same ÷ keys and values of draft and target for the text.
        kv_reserved: bytes that the draft's cache sets aside for branches: γ may be `MOST_GAMMA`.
        slow_down: verification beside the branches ÷ the same one with the draft executor idle, the
            target on the same cores; trial by trial. On inline executors, where nothing overlaps,
            it
            is 1 but for noise.
        tokens_per_second: of SpecBranch with ``k_max=k``, of each repeat, prompts included.
        over_one: its ratio to ``k_max=1``, repeat by repeat: the net gain.
    """

    k: int
    step: float
    planning: float
    message: float
    kv_bytes: float
    kv_share: float
    kv_reserved: float
    slow_down: float
    tokens_per_second: Spread
    over_one: Spread

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> BranchCost:
        """From what `dataclasses.asdict` makes."""
        spreads = {name: Spread(**row[name]) for name in ("tokens_per_second", "over_one")}
        return cls(**row | spreads)


def branch_costs(
    pair: Pair,
    prompts: Sequence[list[int]],
    widths: Sequence[int] = WIDTHS,
    max_tokens: int = 64,
    repeats: int = 3,
) -> list[BranchCost]:
    """Measure on the pair's parallel executors; every text by every k, interleaved and repeated.

    Retrieval is off, and drafting always on, so that the branches matter.

    Args:
        prompts: token ids, one at least.
        widths: k's. 1, which all are compared with, is always one of them.
        max_tokens: generated for each prompt, where speed is measured; greedy.

    Returns:
        One a k, in rising order.

    Raises:
        InputError: no prompts, a k or a number of repeats below 1, a context too short for a round,
            or as `LLM.generate`.
    """
    llm = pair.parallel
    widths = sorted({1, *widths})
    if not prompts or repeats < 1:
        raise InputError("branches are measured on one prompt or more, in one repeat or more")
    if llm.max_model_len <= ROOM:
        raise InputError(
            f"the context holds {llm.max_model_len} tokens, and a round of branches takes "
            f"{ROOM} after the prompt: use a longer one"
        )
    ways = {k: SpeculativeConfig(k_max=k, speculate="always", retrieval=False) for k in widths}
    params = SamplingParams(max_tokens=max_tokens)
    trials = {k: Trials() for k in widths}
    speeds: dict[int, list[Metrics]] = {k: [] for k in widths}
    for options in ways.values():
        _generate(llm, prompts[0], WARM_UP, options)
    with tqdm(total=repeats * len(prompts) * len(widths), desc="branch costs") as progress:
        for _ in range(repeats):
            found: dict[int, list[Metrics]] = defaultdict(list)
            for prompt in prompts:
                for k, options in ways.items():
                    found[k].append(_generate(llm, prompt, params, options))
                    trials[k].run(llm, prompt, options)
                    progress.update()
            for k, metrics in found.items():
                speeds[k].append(reduce(add, metrics))
    return [_cost(k, trials[k], speeds[k], speeds[1]) for k in widths]


def table(costs: Sequence[BranchCost]) -> list[list[str]]:
    """Rows under `HEADINGS`, one a k."""
    return [
        [
            str(cost.k),
            f"{1e3 * cost.step:.2f}",
            f"{1e6 * cost.planning:.0f}",
            f"{1e6 * cost.message:.0f}",
            f"{cost.kv_bytes / 1024:.0f} ({100 * cost.kv_share:.1f} %)",
            f"{cost.kv_reserved / 1024:.0f}",
            f"{cost.slow_down:.2f}",
            f"{cost.tokens_per_second.middle:.1f}",
            str(cost.over_one),
        ]
        for cost in costs
    ]


def plot(costs: Sequence[BranchCost], file: Path) -> None:
    """Six panels over k; speed with the range of its repeats.

    Args:
        file: .svg or .png.

    Raises:
        InputError: as `plot_file.check_file`.
    """
    check_file(file)
    import matplotlib.pyplot as plt

    widths = [cost.k for cost in costs]
    amounts = {
        "draft step, ms": [1e3 * cost.step for cost in costs],
        "planning a round's branches, µs": [1e6 * cost.planning for cost in costs],
        "messages of a round's branch call, µs": [1e6 * cost.message for cost in costs],
        "draft's KV held for branches, KiB": [cost.kv_bytes / 1024 for cost in costs],
    }
    ratios = {
        "target's forward ÷ the same alone": [cost.slow_down for cost in costs],
        "net: speed ÷ speed of k = 1": [cost.over_one.middle for cost in costs],
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), sharex=True, layout="constrained")
    for axis, (title, values) in zip(axes.flat, (amounts | ratios).items(), strict=True):
        axis.plot(widths, values, "o-", color="#4c72b0" if title in amounts else "#d1495b")
        axis.set_title(title, loc="left", fontsize=9)
        if title in amounts:
            axis.set_ylim(0, 1.15 * max(values) or 1)
        else:
            axis.axhline(1, color="#999999", lw=0.8, ls=":")
    low, high = ([getattr(cost.over_one, end) for cost in costs] for end in ("low", "high"))
    axes.flat[-1].fill_between(widths, low, high, color="#d1495b", alpha=0.15, lw=0)
    for axis in axes.flat:
        axis.set_xticks(widths)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[1]:
        axis.set_xlabel("k, branches in a round", fontsize=9)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def _generate(
    llm: LLM, prompt: list[int], params: SamplingParams, options: SpeculativeConfig
) -> Metrics:
    [output] = llm.generate([prompt], params, method="specbranch", config=options)
    return output.metrics


def _cost(
    k: int, trials: Trials, speeds: Sequence[Metrics], of_one: Sequence[Metrics]
) -> BranchCost:
    planning = median(trials.planning)
    pairs = zip(speeds, of_one, strict=True)
    return BranchCost(
        k,
        (median(trials.burst) - planning) / STEPS,
        planning,
        median(trials.message),
        median(trials.kv_bytes),
        median(trials.kv_share),
        median(trials.kv_reserved),
        median(trials.slow_down),
        Spread.of(metrics.tokens_per_second for metrics in speeds),
        Spread.of(ours.tokens_per_second / one.tokens_per_second for ours, one in pairs),
    )
