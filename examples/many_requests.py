"""Several prompts, each with its own parameters: ``python examples/many_requests.py``."""

from specbranch import LLM, SamplingParams

REQUESTS = [
    ("def quicksort(xs):", SamplingParams(max_tokens=32)),
    ("The city of", SamplingParams(max_tokens=32, temperature=0.8, top_p=0.95, seed=1)),
    ("Question: What is 3 + 4?\nAnswer:", SamplingParams(max_tokens=32, stop=["\n"])),
]


def main() -> None:
    """Generate for each request, and print a line about it."""
    with LLM() as llm:
        # What is learned of the pair from one text serves the next.
        outputs = [llm.generate(prompt, params)[0] for prompt, params in REQUESTS]
    for out in outputs:
        completion, metrics = out.outputs[0], out.metrics
        print(f"{out.prompt!r} -> {completion.text!r}")
        print(f"  {completion.finish_reason}: {metrics.committed} tokens, ", end="")
        print(f"{metrics.target_calls} target calls, rollback rate {metrics.rollback_rate:.2f}")


if __name__ == "__main__":
    main()
