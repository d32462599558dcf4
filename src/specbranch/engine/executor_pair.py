"""The executors of a pair, and what all engines over them share."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from threading import RLock
from typing import Any
from weakref import WeakSet

from specbranch.config import SpeculativeConfig
from specbranch.executors.base import Executor, PingRequest
from specbranch.executors.cpu_affinity import AffinityPlan
from specbranch.policy.tuning import Tuning
from specbranch.sampling.grammar import GrammarVocabulary
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import OpenText
from specbranch.workers.requests import OpenRequest, ResetRequest
from specbranch.workers.verifier import Verifier


@dataclass
class ExecutorPair:
    """The verifier's executor, and the drafter's where there is a draft.

    Attributes:
        verifier: of the target.
        drafter: of the draft; None without one, and after it was lost.
        affinity: the CPU affinity of each; None leaves it as it is.
        tunings: what was learned, by the configuration it was learned with and by whether the texts
            were greedy: drafts of sampled texts are accepted less often.
        ids: of the texts, for all engines over the pair.
        lock: held by whoever uses the executors.
        closed: whether they were released.
    """

    verifier: Executor[Verifier]
    drafter: Executor[Drafter] | None = None
    affinity: AffinityPlan | None = None
    tunings: dict[tuple[SpeculativeConfig, bool], Tuning] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=itertools.count)
    lock: Any = field(default_factory=RLock)
    closed: bool = False
    _verifier_overlaps: bool | None = None
    _told: WeakSet[Executor[Any]] = field(default_factory=WeakSet)

    def tuning(self, config: SpeculativeConfig, greedy: bool) -> Tuning:
        """What was learned of such texts with this configuration so far."""
        return self.tunings.setdefault((config, greedy), Tuning(config))

    def opening(
        self, executor: Executor[Any], text: OpenText, vocabulary: GrammarVocabulary | None
    ) -> OpenRequest:
        """The request that opens a text on one of the executors.

        Args:
            vocabulary: where the text follows a grammar. It is large, and is sent once.
        """
        if vocabulary is None or executor in self._told:
            return OpenRequest([text])
        self._told.add(executor)
        return OpenRequest([text], vocabulary)

    @property
    def divides_cores(self) -> bool:
        """Whether the target has fewer cores while the draft works."""
        plan = self.affinity
        return plan is not None and plan.of("target", overlap=False) != plan.target

    def set_verifier_affinity(self, overlapped: bool, anew: bool = False) -> None:
        """Give the target its own cores, or all while the draft has nothing to do.

        Args:
            anew: also if that is what it had, as far as is known here.
        """
        if self.affinity is not None and (anew or overlapped != self._verifier_overlaps):
            self.verifier.set_affinity(self.affinity.of("target", overlap=overlapped))
            self._verifier_overlaps = overlapped

    def set_drafter_affinity(self, overlapped: bool) -> None:
        """Give the draft its own cores, or all for methods that use the models in sequence."""
        if self.affinity is not None and self.drafter is not None:
            self.drafter.set_affinity(self.affinity.of("draft", overlap=overlapped))

    def round_trip(self, times: int = 100) -> float:
        """Seconds that an empty request to the drafter takes, or to the verifier; the median."""
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            (self.drafter or self.verifier).submit(PingRequest()).result()
            taken.append(time.perf_counter() - started)
        return median(taken)

    def reset(self) -> None:
        """Forget what was learned from the texts so far: acceptance, and latencies."""
        with self.lock:
            self.tunings.clear()
            self.verifier.submit(ResetRequest()).result()
            if self.drafter is not None:
                self.drafter.submit(ResetRequest()).result()

    def close(self) -> None:
        """Release both workers. A second call does nothing."""
        with self.lock:
            self.closed = True
            self.verifier.close()
            if self.drafter is not None:
                self.drafter.close()
