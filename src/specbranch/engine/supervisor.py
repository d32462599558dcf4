"""What becomes of a draft that fails: it rests for one text, is started again, or is given up.

The target's text goes on in every case.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from specbranch.engine.executor_pair import ExecutorPair
from specbranch.errors import ExecutorError
from specbranch.executors.base import Executor, PingRequest
from specbranch.workers.drafter import Drafter

logger = logging.getLogger("specbranch")

MOST_RESTARTS = 3  # in a row; a draft that fails as often will fail again
MOST_FAILURES = 3  # texts in a row on which a living draft failed


class Supervisor:
    """Watches over the drafter of a pair.

    Args:
        executors: of the pair.
        restart: starts another drafter; None where it cannot be started again.

    Attributes:
        reason: why there is no draft now; None while there is one.
    """

    def __init__(
        self, executors: ExecutorPair, restart: Callable[[], Executor[Drafter]] | None = None
    ) -> None:
        self._executors = executors
        self._restart = restart
        self._restarts = self._failures = 0
        self.reason: str | None = None

    def failed(self, error: Exception) -> str:
        """Take in that the drafter failed on a text; returns why the text goes on without it."""
        reason = str(error) if isinstance(error, ExecutorError) else f"the draft failed: {error!r}"
        self._failures += 1
        if self._alive() and self._failures < MOST_FAILURES:
            logger.warning("%s: this text goes on without the draft", reason)
            return reason
        drafter, self._executors.drafter = self._executors.drafter, None
        if drafter is not None:
            drafter.close()
        self.reason = reason
        again = self.can_restart
        logger.warning(
            "%s: going on with plain decoding, slower but with the same text%s",
            reason,
            "; the draft is started again for the next text" if again else "",
        )
        return reason

    def succeeded(self) -> None:
        """Take in that a text was finished with the drafter."""
        self._failures = self._restarts = 0

    def before_text(self) -> None:
        """Start a lost drafter again, if that may help."""
        if self.reason is None or not self.can_restart:
            return
        assert self._restart is not None
        self._restarts += 1
        self._failures = 0
        self._executors.drafter = self._restart()
        self.reason = None

    @property
    def can_restart(self) -> bool:
        """Whether a lost drafter is started again for the next text."""
        return (
            self._restart is not None
            and self._restarts < MOST_RESTARTS
            and not self._executors.closed
        )

    def _alive(self) -> bool:
        """Whether the drafter's executor still answers."""
        drafter = self._executors.drafter
        if drafter is None:
            return False
        try:
            drafter.submit(PingRequest()).result()
        except ExecutorError:
            return False
        return True
