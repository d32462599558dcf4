"""Which text advances next."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from specbranch.config import SchedulerConfig
from specbranch.engine.request import EngineRequest


class Scheduler:
    """Texts that wait, and texts that run: those that have caches on the workers.

    Args:
        config: how many may run.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._most = config.max_num_seqs
        self.waiting: deque[EngineRequest] = deque()
        self.running: deque[EngineRequest] = deque()

    def add(self, request: EngineRequest) -> None:
        """Have a text wait for its turn."""
        self.waiting.append(request)

    def remove(self, request: EngineRequest) -> bool:
        """Forget a text; whether it ran or waited."""
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
                return True
        return False

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self, wanted: Collection[EngineRequest] | None = None) -> EngineRequest | None:
        """The text to advance now; None if there is none.

        Running texts take turns. A waiting text is admitted before they go on, as long as there is
        room for it.

        Args:
            wanted: advance one of these, the first of them first. Where they all wait and there is
                no room, a running text is advanced, so that room will come.
        """
        if wanted is not None:
            for request in wanted:
                if request in self.running:
                    return request
                if request in self.waiting and len(self.running) < self._most:
                    self.waiting.remove(request)
                    self.running.append(request)
                    return request
            if not any(request in self.waiting for request in wanted):
                return None
        elif self.waiting and len(self.running) < self._most:
            self.running.append(self.waiting.popleft())
            return self.running[-1]
        if not self.running:
            return None
        self.running.rotate(-1)
        return self.running[-1]
