"""Does a profile of this machine predict this machine's speed? Measured beside predicted.

    python benchmarks/prediction.py SUITE.jsonl … --limit 2 --max-tokens 128 --repeats 3

Measures a profile on the built-in prompts (or reads one, ``--profile FILE``), runs the methods for
real on the prompts of the suites, interleaved, each after a short warm-up, and simulates the same
prompts with the profile. Greedy; drafting may turn itself off, as it does by default.
Tokens a
second count the reading of the prompt, and are those of the median repeat; the machine should have
nothing else to do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from tqdm import tqdm

from specbranch import LLM, SamplingParams
from specbranch.bench.contenders import Contender, Pair
from specbranch.bench.run import WARM_UP
from specbranch.config import SpeculativeConfig
from specbranch.executors.latency_profile import Profile
from specbranch.metrics import Metrics
from specbranch.prompts import read_prompts
from specbranch.simulate.measure import measure
from specbranch.simulate.predict import PROMPTS, predict

MOST_PROMPT_TOKENS = 512
GAMMA = 8  # of SpS and PEARL


def contenders(pair: Pair) -> list[Contender]:
    """The methods that `predict` predicts; SpS and PEARL have one γ on both sides."""
    free, fixed = SpeculativeConfig(), SpeculativeConfig(gamma=GAMMA)
    both = [c for c in pair.lineup(fixed) if c.method in ("speculative", "pearl")]
    rest = [c for c in pair.lineup(free) if c.method in ("autoregressive", "specbranch")]
    return [*rest, *both, pair.as_in_the_paper()]


def run(
    pair: Pair, prompts: list[list[int]], params: SamplingParams, repeats: int
) -> dict[str, list[Metrics]]:
    """Sums over the prompts by method, one a repeat; the methods take turns at every prompt."""
    methods = contenders(pair)
    for contender in methods:
        contender.generate(prompts[0], WARM_UP)
    found: dict[str, list[Metrics]] = {contender.label: [] for contender in methods}
    for _ in tqdm(range(repeats), desc="running"):
        sums = {contender.label: Metrics() for contender in methods}
        for prompt in prompts:
            for contender in methods:
                sums[contender.label] += contender.generate(prompt, params).metrics
        for label, metrics in sums.items():
            found[label].append(metrics)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="*", help="JSONL files (default: built in)")
    parser.add_argument("--draft", default="draft", help="draft or draft-weak")
    parser.add_argument("--limit", type=int, default=2, help="prompts of each file")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3, help="of the measured runs")
    parser.add_argument("--profile", type=Path, help="instead of measuring one")
    parser.add_argument("--save", type=Path, help="write the measured profile here")
    options = parser.parse_args()

    pair = Pair.load(lambda executors: LLM(draft=options.draft, executor=executors), "auto")

    def encoded(files: list[Path], limit: int | None) -> list[list[int]]:
        texts = [text for file in files for text in read_prompts(file, limit)]
        tokenizer = pair.parallel.tokenizer
        return list(tokenizer(texts, truncation=True, max_length=MOST_PROMPT_TOKENS)["input_ids"])

    prompts = encoded(options.suites or [PROMPTS], options.limit)
    profile = (
        Profile.load(options.profile)
        if options.profile
        else measure(pair, encoded([PROMPTS], None))
    )
    if options.save:
        profile.save(options.save)
    params = SamplingParams(max_tokens=options.max_tokens)
    results = run(pair, prompts, params, options.repeats)
    pair.close()
    with LLM(draft=options.draft, executor="virtual", profile=profile) as llm:
        predicted = predict(llm, profile, prompts, params, gammas=(GAMMA,))
    print("| method | measured tokens/s | predicted | predicted ÷ measured | M | predicted |")
    print("|---|---|---|---|---|---|")
    for row in predicted:
        speeds = [metrics.tokens_per_second for metrics in results[row.label]]
        accepted = median(metrics.mean_accepted_length for metrics in results[row.label])
        print(
            f"| {row.label} | {median(speeds):.1f} ({min(speeds):.1f}-{max(speeds):.1f}) | "
            f"{row.tokens_per_second:.1f} | {row.tokens_per_second / median(speeds):.3f} | "
            f"{accepted:.2f} | {row.accepted:.2f} |"
        )


if __name__ == "__main__":
    main()
