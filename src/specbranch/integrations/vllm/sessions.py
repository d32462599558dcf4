"""Which request is where: a state machine over committed tokens, chains and branches.

It knows neither vLLM nor the drafter's process: rows come in, messages come in, messages go out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specbranch.integrations.vllm.messages import Advance, Grown, Open, Reply, Sampling, Step
from specbranch.integrations.vllm.outcomes import Kind, Outcome, Prepared, match

Tokens = NDArray[np.int32]
PART = 4096  # tokens of a prompt in one message, so that none fills the socket


@dataclass(frozen=True)
class Request:
    """What is known of a request beside its tokens.

    Attributes:
        sampling: of its text.
        limit: most tokens that the text will have.
    """

    sampling: Sampling
    limit: int


@dataclass(frozen=True)
class Row:
    """A row of the engine's batch.

    Attributes:
        key: of the request.
        tokens: all its committed tokens, int32 ``[n]``.
        sampled: whether this step committed any; not while the prompt is read.
    """

    key: str
    tokens: Tokens
    sampled: bool


@dataclass
class Session:
    """A request as the drafter knows it.

    Attributes:
        id: the drafter's name for it.
        text: int32; the first `length` tokens are committed, as the drafter was told.
        seen: tokens that were committed as of the last step.
        limit: most tokens of the text.
        chain: what the drafter's path has after them.
        number: of the step in which it advanced last; 0 before.
        branches: for the outcomes of the verification that runs.
        served: whether any branch has arrived for it.
        resting: whether nothing is drafted for it any more.
    """

    id: int
    text: Tokens
    length: int
    seen: int
    limit: int
    chain: list[int] = field(default_factory=list)
    number: int = 0
    branches: list[Prepared] = field(default_factory=list)
    served: bool = False
    resting: bool = False

    @property
    def room(self) -> int:
        """Tokens that may still follow."""
        return self.limit - self.length


@dataclass
class Entry:
    """A session that advances in this step.

    Attributes:
        row: its place in the batch.
        session: with the new chain, if there is one.
        outcome: what became of the old one.
        start: length of the text before this step.
    """

    row: int
    session: Session
    outcome: Outcome
    start: int


class Sessions:
    """The sessions of one drafter.

    Args:
        keep: how many tokens of a continuation to verify, given their estimated acceptance and the
            most that may be.
        patience: tokens that are committed before the drafter is told that it is late.
    """

    def __init__(self, keep: Callable[[Sequence[float], int], int], patience: int) -> None:
        self._keep = keep
        self._patience = patience
        self._sessions: dict[str, Session] = {}
        self._by_id: dict[int, Session] = {}
        self._closed: list[int] = []
        self._next_id = 0
        self._number = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, key: str) -> bool:
        return key in self._sessions

    @property
    def keys(self) -> list[str]:
        """Requests that are known, those that came first before others."""
        return [*self._sessions]

    def committed(self, key: str) -> Tokens:
        """The tokens of a known request as of its last step."""
        session = self._sessions[key]
        return session.text[: session.length]

    def open(self, key: str, tokens: Tokens, request: Request) -> list[Open]:
        """Begin a session; returns what to send."""
        self.close([key])
        limit = max(request.limit, len(tokens))
        text = np.zeros(limit, np.int32)
        text[: len(tokens)] = tokens
        session = Session(self._next_id, text, len(tokens), len(tokens), limit)
        self._next_id += 1
        self._sessions[key] = self._by_id[session.id] = session
        starts = range(0, len(tokens), PART)
        return [
            Open(
                session.id,
                session.text[start : min(start + PART, len(tokens))].tobytes(),
                start + PART >= len(tokens),
                request.sampling,
                limit,
            )
            for start in starts
        ]

    def close(self, keys: Iterable[str]) -> None:
        """End sessions; the drafter is told in the next step."""
        for key in keys:
            if (session := self._sessions.pop(key, None)) is not None:
                del self._by_id[session.id]
                self._closed.append(session.id)

    def forget(self) -> None:
        """Begin anew, because the drafter does."""
        self._sessions.clear()
        self._by_id.clear()
        self._closed.clear()

    def rest(self, ids: Iterable[int]) -> None:
        """Draft nothing more for these sessions: the drafter has no memory for them."""
        for id in ids:
            if (session := self._by_id.get(id)) is not None:
                session.resting = True
                session.chain, session.branches = [], []

    def absorb(self, reply: Reply) -> None:
        """Take in news of the drafter. What belongs to a step gone by is void."""
        for id, number, chain in reply.chains:
            if (session := self._current(id, number)) is not None:
                session.chain = [*chain.tokens]
        for id, number, grown in reply.grown:
            if (session := self._current(id, number)) is not None:
                session.served = True
                for part in grown:
                    _extend(session.branches, part)

    def _current(self, id: int, number: int) -> Session | None:
        session = self._by_id.get(id)
        live = session is not None and session.number == number and not session.resting
        return session if live else None

    def stale(self, row: Row) -> bool:
        """Whether the request of a row is unknown, or another one than that of its name before."""
        session = self._sessions.get(row.key)
        if session is None:
            return True
        known = session.text[: session.length]
        return not np.array_equal(row.tokens[: session.length], known)

    def committed_since(self, rows: Sequence[Row]) -> int:
        """Tokens that rows have more than in the last step; a request's first ones do not count."""
        seen = ((self._sessions[row.key], len(row.tokens)) for row in rows if row.sampled)
        return sum(count - session.seen for session, count in seen if session.number)

    def advance(self, rows: Sequence[Row]) -> list[Entry]:
        """Match each row's newly committed tokens with what was prepared, none of them `stale`.

        Rows that commit nothing, and sessions that rest or are full, are left out. So are sessions
        whose branches have not arrived yet: to tell the drafter of every step would have it begin
        anew each time and never finish. What it prepares is matched with the commits of several
        steps then.
        """
        entries = []
        for place, row in enumerate(rows):
            session, count = self._sessions[row.key], len(row.tokens)
            if not row.sampled or session.resting or count > session.limit:
                continue
            start, session.seen = session.length, count
            committed = row.tokens[start:].tolist()
            fresh = session.number == 0
            if committed:
                outcome = match(session.chain, committed, session.branches, fresh)
            elif fresh:
                outcome = Outcome(Kind.FRESH, 0, 0)
            else:
                continue
            if outcome.kind is Kind.LATE and len(outcome.tokens) <= self._patience:
                continue
            session.text[start:count] = row.tokens[start:]
            session.length = count
            session.chain = self._next_chain(session, outcome)
            session.branches = []
            entries.append(Entry(place, session, outcome, start))
        return entries

    def _next_chain(self, session: Session, outcome: Outcome) -> list[int]:
        """What is to be verified next: the end of the survivor, or of the chain."""
        # The last token that may be written is the target's own.
        most = session.room - 1
        if outcome.kind is Kind.CUT:
            return session.chain[outcome.kept :][: max(0, most)]
        if outcome.survivor is None:
            return []
        branch = session.branches[outcome.survivor]
        done = outcome.kept - outcome.accepted  # tokens of the branch
        kept = self._keep(branch.acceptance[done - 1 :], most)
        return branch.tokens[done : done + kept]

    def step(self, entries: Sequence[Entry], wanted: dict[int, int]) -> Step:
        """The message that tells the drafter of a step.

        Args:
            entries: of the sessions that advanced.
            wanted: by a session's id, how many tokens to draft for it at once.
        """
        self._number += 1
        texts = []
        for entry in entries:
            session, outcome = entry.session, entry.outcome
            session.number = self._number
            length = entry.start + outcome.kept + len(session.chain)
            texts.append(
                Advance(
                    session.id,
                    length,
                    outcome.tokens,
                    outcome.survivor,
                    session.length,
                    session.room,
                    wanted.get(session.id, 0),
                )
            )
        closed, self._closed = tuple(self._closed), []
        return Step(self._number, tuple(texts), closed)

    @property
    def closed(self) -> bool:
        """Whether the drafter is yet to be told of ended sessions."""
        return bool(self._closed)


def _extend(branches: list[Prepared], grown: Grown) -> None:
    index, accepted, tokens, acceptance = grown
    if index == len(branches):
        branches.append(Prepared(accepted))
    branches[index].tokens += tokens
    branches[index].acceptance += acceptance
