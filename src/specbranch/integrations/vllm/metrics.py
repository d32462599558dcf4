"""Counters of the proposer, in vLLM's Prometheus endpoint.

The endpoint is in the server's process and the proposer in a worker's. The server's process names
a folder in the environment, which its workers inherit; each proposer writes its counters there,
and the server's process reads them when it is asked.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "SPECBRANCH_VLLM_METRICS_FOLDER"
INTERVAL = 0.5  # seconds between two writes
PREFIX = "vllm:specbranch_"
HELP = {
    "steps": "Steps of the engine in which drafts were asked for",
    "fresh": "Requests' first steps, for which nothing was prepared",
    "hit": "Outcomes for which there was a branch",
    "miss": "Outcomes for which there was none",
    "held": "Verifications that ended before any branch had arrived",
    "late": "Times that the drafter was so late that it began anew",
    "cut": "Commits that end inside a chain",
    "empty": "Hits whose branch had no token to verify yet",
    "waits": "Steps that waited for a draft",
    "wait_seconds": "Seconds that were waited",
    "wait_given_up": "Waits that were given up",
    "propose_seconds": "Seconds inside propose()",
    "branches": "Branches that arrived",
    "proposed_tokens": "Draft tokens given to vLLM",
    "accepted_tokens": "Draft tokens that were committed",
    "committed_tokens": "Tokens committed in steps that counted an outcome",
    "restarts": "Starts of the drafter after the first",
    "faults": "Errors of the proposer itself, after which the drafter was started again",
    "resting": "Requests for which the draft had no memory",
    "opened": "Requests opened on the drafter",
}


class Metrics(dict[str, float]):
    """Counters by their names in `HELP`, 0 at first."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(HELP, 0.0))
        self._written = 0.0

    @property
    def verifications(self) -> float:
        """Of rows for which something could have been prepared."""
        return sum(self[name] for name in ("hit", "miss", "late", "cut", "held"))

    @property
    def hit_rate(self) -> float:
        """Share of the verifications whose outcome had a branch."""
        return self["hit"] / self.verifications if self.verifications else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """M: tokens committed by a verification."""
        return self["committed_tokens"] / self.verifications if self.verifications else 0.0

    def write(self, now: bool = False) -> None:
        """Put the counters where the server's process finds them, now and then.

        Args:
            now: however short the last time is ago.
        """
        if not (folder := os.environ.get(FOLDER)):
            return
        at = time.monotonic()
        if now or at - self._written > INTERVAL:
            self._written = at
            file = Path(folder) / f"{os.getpid()}.json"
            # The server may have ended, and its folder with it.
            with contextlib.suppress(OSError):
                partial = file.with_suffix(".partial")
                partial.write_text(json.dumps(self))
                partial.replace(file)


def read(folder: Path) -> dict[str, float]:
    """The counters of all proposers together; empty if none has written any."""
    total: dict[str, float] = {}
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            for name, value in json.loads(file.read_text()).items():
                total[name] = total.get(name, 0.0) + value
    return total


class Collector:
    """What `prometheus_client` asks for the counters."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> list[Any]:
        """Nothing is collected when this is registered."""
        return []

    def collect(self) -> Iterator[Any]:
        """The counters as Prometheus metrics; none if no proposer has written any."""
        from prometheus_client.core import CounterMetricFamily

        if counters := read(self._folder):
            for name, text in HELP.items():
                yield CounterMetricFamily(PREFIX + name, text, value=counters.get(name, 0.0))


def publish() -> None:
    """Have this process's Prometheus endpoint show the counters of the proposers it starts."""
    if os.environ.get(FOLDER):  # this is a worker of a process that shows them
        return
    from prometheus_client import REGISTRY

    folder = Path(tempfile.mkdtemp(prefix="specbranch-vllm-"))
    os.environ[FOLDER] = str(folder)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    REGISTRY.register(Collector(folder))
