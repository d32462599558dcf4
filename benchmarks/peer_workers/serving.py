"""How a peer talks to `peers.py`: by its arguments, and JSON lines on standard input and output.

A peer says ``{"version": …}`` once its models are loaded. Then, asked ``{"ids": […], "count": n}``,
it says ``{"ids": […], "seconds": s}``: the n greedy tokens after those, and how long that took,
prompt included. Instead of either it may say ``{"error": …}``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[int], int], list[int]]

OPTIONS: dict[str, dict[str, Any]] = {
    "--count": {"type": int, "help": "most tokens to draft"},
    "--lookup": {"type": int, "help": "most tokens to copy from the prompt"},
    "--cache": {"choices": ("f32", "f16"), "default": "f16"},
    "--context": {"type": int, "required": True},
    "--threads": {"type": int, "required": True},
}


def read_options(doc: str | None, *names: str) -> argparse.Namespace:
    """The arguments of a peer that takes these, of `OPTIONS` or just strings."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", maxsplit=1)[0])
    for name in names:
        parser.add_argument(name, **OPTIONS.get(name, {}))
    return parser.parse_args()


def serve(load: Callable[[], tuple[str, Generate]]) -> None:
    """Load, then answer until the input ends.

    Args:
        load: gives the peer's version, and what generates.
    """
    # What libraries print must not mix with the answers: standard output becomes the log.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**what: object) -> None:
        answers.write(json.dumps(what) + "\n")

    try:
        version, generate = load()
        say(version=version)
        for line in sys.stdin:
            asked = json.loads(line)
            started = time.perf_counter()
            ids = generate(asked["ids"], asked["count"])
            say(ids=ids, seconds=time.perf_counter() - started)
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}")
        raise
