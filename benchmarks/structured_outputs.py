"""Structured output by JSON schemas: valid, equal to plain decoding, and how many tokens a call.

    python -m benchmarks.structured_outputs --texts 100

Every text has a schema of its own (`tests.schemas`) and one of four prompts. M is given with the
grammar, and of free text of the same lengths after the same prompts. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json

from specbranch import LLM, SamplingParams
from specbranch.metrics import Metrics
from tests.schemas import fits, random_schema

PROMPTS = [
    "A record:\n",
    "def f(x):\n    return ",
    "Once there was a king",
    "Question: What is 3 + 4?\nAnswer:",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["specbranch", "speculative", "lookup"])
    parser.add_argument("--target", default="target")
    parser.add_argument("--draft", default="auto")
    options = parser.parse_args()
    valid = dict.fromkeys(options.methods, 0)
    same = dict.fromkeys(options.methods, 0)
    bound = {method: Metrics() for method in options.methods}
    free = {method: Metrics() for method in options.methods}
    with LLM(options.target, options.draft, executor="inline", speculate="always") as llm:
        for seed in range(options.texts):
            schema, prompt = random_schema(seed), PROMPTS[seed % len(PROMPTS)]
            structured = {"json": schema, "disable_any_whitespace": True}
            params = SamplingParams(max_tokens=200, structured_outputs=structured)
            [plain] = llm.generate(prompt, params, method="autoregressive")
            tokens = plain.outputs[0].token_ids
            unbound = SamplingParams(max_tokens=len(tokens), ignore_eos=True)
            for method in options.methods:
                [ours] = llm.generate(prompt, params, method=method)
                same[method] += ours.outputs[0].token_ids == tokens
                valid[method] += fits(json.loads(ours.outputs[0].text), schema)
                bound[method] += ours.metrics
                free[method] += llm.generate(prompt, unbound, method=method)[0].metrics
    for method in options.methods:
        print(
            f"{method}: {valid[method]} of {options.texts} valid, {same[method]} equal to plain "
            f"decoding; M {bound[method].mean_accepted_length:.2f} with the grammar, "
            f"{free[method].mean_accepted_length:.2f} without"
        )


if __name__ == "__main__":
    main()
