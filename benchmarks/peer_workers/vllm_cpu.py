"""vLLM's CPU build: plain, or with a draft model."""

from __future__ import annotations

import argparse
import os

import vllm
from serving import Generate, read_options, serve
from vllm import LLM, SamplingParams


def load(options: argparse.Namespace) -> tuple[str, Generate]:
    draft = {"model": options.draft, "num_speculative_tokens": options.count}
    llm = LLM(
        options.target,
        dtype="float32",
        max_model_len=options.context,
        enable_prefix_caching=False,  # of the prompt, nothing is known from earlier
        max_num_seqs=1,
        speculative_config=draft | {"method": "draft_model"} if options.draft else None,
    )

    def generate(ids: list[int], count: int) -> list[int]:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        found = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
        return list(found[0].outputs[0].token_ids)

    return vllm.__version__, generate


def main() -> None:
    options = read_options(__doc__, "target", "--draft", "--count", "--context")
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    serve(lambda: load(options))


if __name__ == "__main__":
    main()
