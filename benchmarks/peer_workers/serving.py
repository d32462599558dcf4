"""How a peer talks to `peers.py`: JSON lines on standard input and output.

A peer says ``{"version": …}`` once its models are loaded. Then, asked ``{"ids": […], "count": n}``,
it says ``{"ids": […], "seconds": s}``: the n greedy tokens after those, and how long that took,
prompt included. Instead of either it may say ``{"error": …}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

Generate = Callable[[list[int], int], list[int]]


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
