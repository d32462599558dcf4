"""llama.cpp through `llama-cpp-python`: plain, or with a draft model."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import GGML_TYPE_F16, GGML_TYPE_F32, Llama
from llama_cpp.llama_speculative import LlamaDraftModel
from serving import Generate, read_options, serve


class Draft(LlamaDraftModel):
    """A second model that drafts greedily; it keeps its cache from call to call.

    `llama-cpp-python` itself drafts by prompt lookup only.
    """

    def __init__(self, llama: Llama, count: int) -> None:
        self._llama = llama
        self._count = count

    def __call__(self, input_ids: np.ndarray, /, **kwargs: Any) -> np.ndarray:
        llama = self._llama
        # The last token is read in any case: its logits are needed.
        shared = min(llama.n_tokens, len(input_ids) - 1)
        differing = np.flatnonzero(llama.input_ids[:shared] != input_ids[:shared])
        llama.n_tokens = int(differing[0]) if len(differing) else shared
        pending = input_ids[llama.n_tokens :].tolist()
        drafted = []
        for _ in range(self._count):
            llama.eval(pending)  # which drops from the cache what lies behind `n_tokens`
            row = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
            token = int(np.ctypeslib.as_array(row, shape=(llama.n_vocab(),)).argmax())
            drafted.append(token)
            pending = [token]
        return np.array(drafted, dtype=np.intc)


def load_model(file: str, options: argparse.Namespace, draft: Draft | None = None) -> Llama:
    cache = {"f32": GGML_TYPE_F32, "f16": GGML_TYPE_F16}[options.cache]
    return Llama(
        file,
        n_ctx=options.context,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        type_k=cache,
        type_v=cache,
        draft_model=draft,
        logits_all=draft is not None,  # it makes room for a batch's logits only, if not told
        verbose=False,
    )


def load(options: argparse.Namespace) -> tuple[str, Generate]:
    draft = Draft(load_model(options.draft, options), options.count) if options.draft else None
    llama = load_model(options.target, options, draft)

    def generate(ids: list[int], count: int) -> list[int]:
        llama.reset()  # of the prompt, nothing is known from earlier
        return list(islice(llama.generate(ids, temp=0.0), count))

    return llama_cpp.__version__, generate


def main() -> None:
    options = read_options(
        __doc__, "target", "--draft", "--count", "--cache", "--context", "--threads"
    )
    serve(lambda: load(options))


if __name__ == "__main__":
    main()
