"""What k branches cost, and the net gain: a table for Markdown, and a plot.

    python benchmarks/branch_costs.py PROMPTS.jsonl --limit 4 --repeats 5 --plot costs.svg

Measured on the executors that this machine has, every k in turn; see
`specbranch.bench.branch_costs`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from specbranch import LLM
from specbranch.bench.branch_costs import HEADINGS, WIDTHS, branch_costs, plot, table
from specbranch.bench.contenders import Pair
from specbranch.prompts import read_prompts


def load(draft: str, executors: str) -> LLM:
    return LLM(draft=draft, executor=executors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("prompts", type=Path, nargs="+", help=".jsonl files, one prompt a row")
    parser.add_argument("--draft", default="draft", help="draft or draft-weak")
    parser.add_argument("--k", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--limit", type=int, default=3, help="prompts of each file")
    parser.add_argument("--prompt-tokens", type=int, default=384, help="cut longer prompts there")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help=".svg or .png")
    options = parser.parse_args()
    texts = [text for file in options.prompts for text in read_prompts(file, options.limit)]
    pair = Pair.load(partial(load, options.draft), "auto")
    encode = pair.parallel.tokenizer
    encoded = encode(texts, truncation=True, max_length=options.prompt_tokens)
    found = branch_costs(pair, encoded["input_ids"], options.k, options.max_tokens, options.repeats)
    pair.close()
    for row in (HEADINGS, ["---"] * len(HEADINGS), *table(found)):
        print(f"| {' | '.join(row)} |")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
