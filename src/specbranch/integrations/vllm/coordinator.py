"""A step of the engine: takes in news, matches outcomes, answers at once, posts the commits.

It knows no vLLM: rows of the batch come in, chains of draft tokens go out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from specbranch.errors import ExecutorError, InputError
from specbranch.integrations.vllm.chain_length import ChainLength
from specbranch.integrations.vllm.link import Link
from specbranch.integrations.vllm.messages import Ready, Reply, Resting
from specbranch.integrations.vllm.metrics import Metrics
from specbranch.integrations.vllm.outcomes import Kind
from specbranch.integrations.vllm.sessions import Entry, Request, Row, Sessions
from specbranch.integrations.vllm.waiting import WaitPolicy

logger = logging.getLogger("specbranch")

MOST_REQUESTS = 256  # at a time; a message about more would not fit the socket
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0  # seconds before a drafter that failed is started again
STEADY = 120.0  # seconds of service after which a failure counts as a first one


class Coordinator:
    """Proposes chains for rows, and keeps a drafter at work.

    Args:
        connect: starts a drafter.
        gamma: γ, most tokens of a chain.
        wait: seconds that a wait for a draft may last.
        always: see `ChainLength`.
        clock: seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        gamma: int,
        wait: float,
        always: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = Metrics()
        self.link: Link | None = connect()
        self._connect = connect
        self._gamma = gamma
        self._clock = clock
        self._length = ChainLength(always)
        self._waiting = WaitPolicy(gamma, wait)
        self._sessions = Sessions(self._keep, patience=gamma)
        self._delay = FIRST_DELAY
        self._restart_at = 0.0
        self._served_since = clock()
        self._waited: dict[int, int] = {}  # by session, tokens of a chain that was waited for
        self._step: tuple[frozenset[str], int, float] | None = None

    def _keep(self, acceptance: Sequence[float], most: int) -> int:
        return self._length.kept(acceptance, min(most, self._gamma))

    @property
    def sessions(self) -> Sessions:
        """The sessions, for who identifies rows by their text."""
        return self._sessions

    @property
    def ready(self) -> bool:
        """Whether the draft is loaded."""
        return self.link is not None and self.link.ready

    def wait_until_ready(self, seconds: float) -> bool:
        """Wait until the draft is loaded, at most so long; whether it is.

        Raises:
            InputError: it cannot be loaded.
            ExecutorError: its process ended.
        """
        until = self._clock() + seconds
        while not self.ready and (left := until - self._clock()) > 0:
            self._receive(min(left, 1.0))
        return self.ready

    def open(self, row: Row, request: Request) -> None:
        """Have the drafter read a prompt, before its first step."""
        if self.ready and row.key not in self._sessions and len(self._sessions) < MOST_REQUESTS:
            try:
                self._open(row, request)
            except ExecutorError as gone:
                self._lost(gone)
            except Exception as fault:
                self._faulted(fault)

    def propose(
        self,
        rows: Sequence[Row],
        request: Callable[[str], Request | None],
        alive: Collection[str],
    ) -> list[list[int]]:
        """Draft tokens for each row.

        Args:
            rows: of the batch.
            request: what is known of a request; None where nothing may be drafted for it.
            alive: requests that have not ended.
        """
        begun = self._clock()
        nothing: list[list[int]] = [[] for _ in rows]
        try:
            if self.link is None and not self._revived():
                return nothing
            self._receive(0.0)
            if not self.ready:
                return nothing
            return self._propose(rows, request, alive, begun)
        except ExecutorError as gone:
            self._lost(gone)
            return nothing
        except InputError as error:  # the draft's files are gone since vLLM's start
            logger.warning("specbranch: %s. vLLM goes on without drafts", error)
            self.close()
            return nothing
        except Exception as fault:  # of this package: no reason for vLLM to end
            self._faulted(fault)
            return nothing
        finally:
            self.metrics["propose_seconds"] += self._clock() - begun
            self.metrics.write()

    def _propose(
        self,
        rows: Sequence[Row],
        request: Callable[[str], Request | None],
        alive: Collection[str],
        begun: float,
    ) -> list[list[int]]:
        self._sessions.close([key for key in self._sessions.keys if key not in alive])
        known = [row for row in rows if self._follow(row, request)]
        places = {row.key: place for place, row in enumerate(rows)}
        committed = self._sessions.committed_since(known)
        entries = self._sessions.advance(known)
        self.metrics["held"] += sum(row.sampled for row in known) - len(entries)
        self.metrics["committed_tokens"] += committed
        self._observe(rows, entries, committed, begun)
        missed = [e for e in entries if not e.session.chain and e.session.room > 1]
        unprepared = [e for e in missed if e.session.served and e.outcome.kind is not Kind.HIT]
        tokens = self._waiting.tokens(len(unprepared), len(rows), self._length.rate)
        wanted = {e.session.id: min(tokens, e.session.room - 1) for e in unprepared if tokens}
        if entries or self._sessions.closed:
            assert self.link is not None
            self.link.send(self._sessions.step(entries, wanted))
        chains: list[list[int]] = [[] for _ in rows]
        for entry in entries:
            chains[places[known[entry.row].key]] = [*entry.session.chain]
        if wanted:
            for entry in self._wait([e for e in unprepared if e.session.id in wanted], tokens):
                chain = entry.session.chain
                kept = chain[: min(self._gamma, entry.session.room - 1)]
                chains[places[known[entry.row].key]] = kept
                self._waited[entry.session.id] = len(kept)
        self.metrics["steps"] += 1
        self.metrics["proposed_tokens"] += sum(map(len, chains))
        verified = len(rows) + sum(map(len, chains))
        steady = all(row.sampled for row in rows)
        keys = frozenset(row.key for row in rows)
        self._step = (keys, verified, self._clock()) if steady else None
        return chains

    def _follow(self, row: Row, request: Callable[[str], Request | None]) -> bool:
        """Whether a row has a session, which is opened if need be."""
        if self._sessions.stale(row):
            facts = request(row.key) if len(self._sessions) < MOST_REQUESTS else None
            if facts is None:
                self._sessions.close([row.key])
                return False
            self._open(row, facts)
        return True

    def _open(self, row: Row, request: Request) -> None:
        assert self.link is not None
        for message in self._sessions.open(row.key, row.tokens, request):
            self.link.send(message)
        self.metrics["opened"] += 1

    def _observe(
        self, rows: Sequence[Row], entries: Sequence[Entry], committed: int, now: float
    ) -> None:
        """Count what became of the last step, and learn from it."""
        for entry in entries:
            outcome = entry.outcome
            self.metrics[outcome.kind.value] += 1
            if outcome.kind is Kind.FRESH:
                continue
            self.metrics["accepted_tokens"] += outcome.accepted
            if outcome.kind is Kind.HIT and not entry.session.chain:
                self.metrics["empty"] += 1
            if (proposed := self._waited.pop(entry.session.id, None)) is not None:
                self._waiting.learn(proposed, min(outcome.accepted, proposed))
        if self._step is not None and committed:
            keys, verified, begun = self._step
            if keys == {row.key for row in rows}:
                self._length.observe(verified, committed, now - begun)

    def _wait(self, entries: Sequence[Entry], tokens: int) -> list[Entry]:
        """Wait for the chains of these; returns those that have one."""
        begun = self._clock()
        until = begun + self._waiting.deadline(tokens)
        self.metrics["waits"] += 1
        while any(not entry.session.chain for entry in entries):
            if (left := until - self._clock()) <= 0:
                self.metrics["wait_given_up"] += 1
                break
            if self._receive(left):
                break
        seconds = self._clock() - begun
        self._waiting.observe(tokens, seconds)
        self.metrics["wait_seconds"] += seconds
        return [entry for entry in entries if entry.session.chain]

    def _receive(self, seconds: float) -> bool:
        """Take in what has arrived; whether chains were among it."""
        assert self.link is not None
        chains = False
        for news in self.link.receive(seconds):
            if isinstance(news, Reply):
                self._sessions.absorb(news)
                self.metrics["branches"] += sum(
                    sum(len(tokens) > len(acceptance) for _, _, tokens, acceptance in grown)
                    for _, _, grown in news.grown
                )
                chains = chains or bool(news.chains)
            elif isinstance(news, Resting):
                self._sessions.rest(news.ids)
                self.metrics["resting"] += len(news.ids)
            elif isinstance(news, Ready):
                self._served_since = self._clock()
                logger.info("specbranch: the draft is ready: %s", news.what)
        return chains

    def _lost(self, gone: ExecutorError) -> None:
        """One warning, and another drafter after a while."""
        if self.link is not None:
            self.link.close()
            self.link = None
        self._sessions.forget()
        self._waited.clear()
        self._step = None
        now = self._clock()
        if now - self._served_since > STEADY:
            self._delay = FIRST_DELAY
        self._restart_at = now + self._delay
        logger.warning(
            "specbranch: %s. vLLM goes on without drafts; a new drafter is started in %.0f s",
            gone,
            self._delay,
        )
        self._delay = min(2 * self._delay, LONGEST_DELAY)

    def _faulted(self, fault: Exception) -> None:
        self.metrics["faults"] += 1
        logger.info("specbranch: the fault", exc_info=fault)
        self._lost(ExecutorError("draft", f"is ended after a fault in specbranch: {fault!r}"))

    def _revived(self) -> bool:
        """Start a drafter again if it is time; whether there is one."""
        if self._clock() < self._restart_at:
            return False
        self.metrics["restarts"] += 1
        self._served_since = self._clock()
        self.link = self._connect()
        return True

    def close(self) -> None:
        """End the drafter."""
        link, self.link = self.link, None
        self._restart_at = float("inf")
        if link is not None:
            link.close()
        self.metrics.write(now=True)
