"""What a useless draft costs: self-tuning SpecBranch against plain decoding, interleaved.

    python benchmarks/useless_draft.py --repeats 5

The draft has the bundled draft's shape and random weights; nothing it says is ever accepted. Both
sides have the same cores; plain decoding runs at its natural width before and after each text. What
was learned is forgotten before each text, so that each finds out anew that drafting does not pay.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specbranch import LLM, SamplingParams
from specbranch.zoo import BUNDLED

PROMPT = "Question: Tom has 3 apples and buys 4 more. How many?\nAnswer:"


def make_draft(folder: Path) -> None:
    """A model with random weights, and the bundled tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(BUNDLED["draft"])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["draft"] / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--no-retrieval", dest="retrieval", action="store_false")
    options = parser.parse_args()
    params = SamplingParams(max_tokens=options.max_tokens, ignore_eos=True)
    with TemporaryDirectory() as folder:
        make_draft(Path(folder))
        with LLM(draft=folder, retrieval=options.retrieval) as llm:
            plain = llm.plain()
            for one in (plain, llm):
                one.generate(PROMPT, SamplingParams(max_tokens=16))
            ratios = []
            for _ in range(options.repeats):
                llm.reset()
                outputs = [one.generate(PROMPT, params)[0] for one in (plain, llm, plain)]
                before, ours, after = (output.metrics.tokens_per_second for output in outputs)
                ratios.append(ours / ((before + after) / 2))
                drafted = sum(done.branching is not None for done in outputs[1].rounds)
                print(
                    f"plain {before:.1f} and {after:.1f} tokens/s, with the draft {ours:.1f}: "
                    f"{ratios[-1]:.3f}; {drafted} rounds of drafting",
                    flush=True,
                )
    print(f"median ratio {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
