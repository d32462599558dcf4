"""``specbranch demo``: ask a small real model, or have the toy continue a text."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from specbranch.cli.generate import conversation, emit, stream
from specbranch.engine.inputs import chat_prompt
from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.models.pairs import PAIRS, find_pair, locate
from specbranch.sampling_params import SamplingParams

QUESTION = "Why is the sky blue? Explain it to a child, step by step."
TEXT = "def quicksort(xs):"


def run_demo(options: argparse.Namespace) -> int:
    """Stream an answer, coloured by where each token came from."""
    pair = find_pair(options.pair)
    if pair is not PAIRS["toy"]:
        try:
            locate(pair)
        except InputError as error:
            print(
                f"{error}\nHere is the toy pair instead. It is made for tests: it continues text, "
                "mostly badly, and answers nothing.",
                file=sys.stderr,
            )
            pair = PAIRS["toy"]
    toy = pair is PAIRS["toy"]
    params = SamplingParams(max_tokens=options.max_tokens)
    said = options.prompt or (TEXT if toy else QUESTION)
    console = Console(highlight=False)
    print(f"loading {pair.name}: {pair.title}", file=sys.stderr)
    # Compiling takes a minute or two, which is longer than the answer.
    with LLM(pair=pair.name, enforce_eager=True) as llm:
        if toy:
            emit(console, said, "dim")
            stream(llm, llm.request(said, params), console)
        else:
            console.print(f"> {said}", style="dim", markup=False)
            prompt = chat_prompt(conversation(said), llm.tokenizer)
            stream(llm, llm.request(prompt, params), console)
    return 0
