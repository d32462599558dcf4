"""How well a draft's confidence tells which of its sampled tokens the target will accept.

    python benchmarks/sampled_confidence.py --limit 4 SUITE.jsonl …

Plain decoding writes texts with `coupled` sampling; at each of their places the draft proposes a
token. Two kinds of confidence rank these places: the draft's largest raw probability, as in the
paper, and its largest share with the noise that chooses the token. The score is the area under the
ROC curve: the chance that an accepted token ranks above a rejected one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from specbranch import LLM, SamplingParams
from specbranch.models.loader import ModelSpec, load_model
from specbranch.policy.branching import confidence
from specbranch.prompts import read_prompts
from specbranch.sampling.pipeline import LogitsPipeline
from specbranch.sampling.rng import Stream
from specbranch.sampling.samplers import make_sampler

PROMPT = 512  # tokens that are read of one


def ranking(values: Tensor, accepted: Tensor) -> float:
    """Area under the ROC curve; equal values count half."""
    above, below = values[accepted], values[~accepted]
    wins = (above[:, None] > below).double() + (above[:, None] == below).double() / 2
    return wins.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("suites", type=Path, nargs="+", help="JSONL files of prompts")
    parser.add_argument("--drafts", nargs="+", default=["draft", "draft-weak"])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--limit", type=int, default=4, help="prompts of each suite")
    parser.add_argument("--tokens", type=int, default=96, help="of each text")
    options = parser.parse_args()
    prompts = [p for suite in options.suites for p in read_prompts(suite, options.limit)]
    drafts = {name: load_model(ModelSpec(name)) for name in options.drafts}
    print("| temperature | draft | places | accepted | raw | with the noise |")
    print("|---|---|---|---|---|---|")
    with LLM(draft=None) as llm, torch.inference_mode():
        for temperature in options.temperatures:
            params = SamplingParams(temperature=temperature, seed=1, max_tokens=options.tokens)
            sampler, pipeline = make_sampler(params), LogitsPipeline.of(params)
            found: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in drafts}
            for text in tqdm(prompts, f"temperature {temperature:g}"):
                ids = llm.tokenizer(text, truncation=True, max_length=PROMPT)["input_ids"]
                [output] = llm.generate([ids], params)
                read, tokens = len(ids), ids + output.outputs[0].token_ids
                places = range(read, len(tokens))
                for name, draft in drafts.items():
                    logits = draft(torch.tensor([tokens])).logits[0, read - 1 : -1].float()
                    scores = sampler.scores(pipeline(logits), places, Stream.TARGET)
                    right = scores.argmax(-1) == torch.tensor(tokens[read:])
                    values = confidence(logits), confidence(scores), right.tolist()
                    found[name] += zip(*values, strict=True)
            for name, rows in found.items():
                raw, noised, accepted = map(torch.tensor, zip(*rows, strict=True))
                cells = [f"{ranking(values, accepted):.3f}" for values in (raw, noised)]
                share = f"{accepted.double().mean().item():.2f}"
                print(f"| {temperature:g} | {name} | {len(rows)} | {share} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
