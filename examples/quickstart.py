"""One prompt, and how its text was made: ``python examples/quickstart.py``."""

from specbranch import LLM, SamplingParams


def main() -> None:
    """Continue a prompt, and print where its tokens came from."""
    with LLM() as llm:
        [out] = llm.generate("def quicksort(xs):", SamplingParams(max_tokens=48))
    completion, metrics = out.outputs[0], out.metrics
    print(out.prompt + completion.text)
    print()
    print(f"{metrics.committed} tokens in {metrics.target_calls} target calls:")
    print(f"mean acceptance length {metrics.mean_accepted_length:.2f}")
    for origin in sorted(set(completion.origins)):
        print(f"  {completion.origins.count(origin)} from: {origin}")


if __name__ == "__main__":
    main()
