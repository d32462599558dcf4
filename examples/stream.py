"""Text as soon as it is final: ``python examples/stream.py "The city of"``.

Drafted text is green, the target's own is plain. On anything but a terminal there are no colours.
"""

import sys

from specbranch import LLM, SamplingParams

GREEN, PLAIN = "\033[32m", "\033[0m"


def main() -> None:
    """Stream the continuation of a prompt."""
    prompt = sys.argv[1] if len(sys.argv) > 1 else "Question: Tom has 3 apples and buys 4.\nAnswer:"
    coloured = sys.stdout.isatty()
    with LLM() as llm:
        print(prompt, end="", flush=True)
        for piece in llm.stream(prompt, SamplingParams(max_tokens=48)):
            drafted = piece.origin != "target"
            text = f"{GREEN}{piece}{PLAIN}" if coloured and drafted else str(piece)
            print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
