"""Our own side of `peers.py`, as the peers have it: one method in a process of its own."""

from __future__ import annotations

import argparse

from serving import Generate, serve

from specbranch import LLM, SamplingParams, __version__


def load(method: str, gamma: int | None) -> tuple[str, Generate]:
    # Models in turn have all cores each; SpecBranch divides them between both.
    executors = "auto" if method == "specbranch" else "inline"
    llm = LLM(executor=executors, method=method, gamma=gamma or "auto")
    if method == "autoregressive":
        llm = llm.plain()
    # In turn, the models have the cores that the executors have together.
    if llm.executor == "inline":
        llm.affinity.alone.apply()

    def generate(ids: list[int], count: int) -> list[int]:
        params = SamplingParams(max_tokens=count, ignore_eos=True)
        return llm.generate([ids], params)[0].outputs[0].token_ids

    return __version__, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("method", choices=("autoregressive", "speculative", "specbranch"))
    parser.add_argument("--gamma", type=int)
    options = parser.parse_args()
    serve(lambda: load(options.method, options.gamma))


if __name__ == "__main__":
    main()
