"""A runner as vLLM's, without vLLM: a batch whose rows move, and a drafter in the same process.

The drafter's loop runs for as many pieces of work as the test lets it, between two steps or in
the middle of a wait, so that replies come late, early, or after the request has ended.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from specbranch.errors import ExecutorError
from specbranch.integrations.vllm.drafter_loop import DrafterLoop
from specbranch.integrations.vllm.messages import Message, News, Ready, Start
from specbranch.workers.drafter import Drafter
from tests.tables import TableRunner, random_table

VOCABULARY = 7
CONTEXT = 60
GAMMA = 3
Next = Callable[[list[int]], int]


def start(**changes: Any) -> Start:
    given = {
        "draft": "table",
        "target": "",
        "dtype": "auto",
        "device": "cpu",
        "quantization": None,
        "eager": True,
        "cores": None,
        "vocabulary": VOCABULARY,
        "gamma": GAMMA,
        "k_max": 3,
        "context": CONTEXT,
        "retrieval": False,
    }
    return Start(**given | changes)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


class LoopLink:
    """A link to a drafter's loop in this process. Messages are pickled as on a socket."""

    def __init__(self, table_seed: int, clock: Clock, positions: int = 1000) -> None:
        self.ready = False
        self.inbox: deque[bytes] = deque()
        self.outbox: deque[bytes] = deque()
        self.dead = self.closed = False
        self.during_waits = 4  # pieces of work
        self.lags = False  # a message is read only after a piece of work that was begun before
        self._clock = clock
        self.runner = TableRunner(random_table(table_seed, VOCABULARY), VOCABULARY)
        self.drafter = Drafter(self.runner)
        self.loop = DrafterLoop(self.drafter, start(), positions, self._post, clock)
        self._post(Ready("a table"))

    def _post(self, news: News) -> None:
        self.outbox.append(pickle.dumps(news))

    def send(self, message: Message) -> None:
        if self.dead:
            raise ExecutorError("draft", "died")
        self.inbox.append(pickle.dumps(message))

    def receive(self, seconds: float = 0.0) -> list[News]:
        if self.dead:
            raise ExecutorError("draft", "died")
        if seconds:
            self.work(self.during_waits)
            if not self.outbox:
                self._clock.now += seconds
        news = [pickle.loads(data) for data in self.outbox]
        self.outbox.clear()
        self.ready = self.ready or any(isinstance(one, Ready) for one in news)
        return news

    def work(self, pieces: int) -> None:
        if self.lags and pieces and self.loop.busy:
            self.loop.work()
        for _ in range(pieces):
            while self.inbox:
                self.loop.take(pickle.loads(self.inbox.popleft()))
            if not self.loop.busy:
                return
            self.loop.work()

    def close(self) -> None:
        self.closed = True


class FakeRunner:
    """What the proposer reads of vLLM's model runner, and the steps that vLLM would make.

    Args:
        target: says the next token of a text.
        rows: most in a batch.
    """

    def __init__(self, target: Next, rows: int) -> None:
        self._target = target
        self._rows = rows
        self.requests: dict[str, SimpleNamespace] = {}
        self.input_batch = SimpleNamespace(req_ids=[])
        self.texts: dict[str, list[int]] = {}
        self.read: dict[str, int] = {}  # tokens of each text in the target's cache
        self.drafts: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self._new: list[SimpleNamespace] = []

    def add(self, name: str, prompt: list[int], max_tokens: int, **params: Any) -> None:
        sampling = SimpleNamespace(
            temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0
        )
        vars(sampling).update(params, max_tokens=max_tokens)
        self.requests[name] = SimpleNamespace(prompt_token_ids=prompt, sampling_params=sampling)
        self.texts[name], self.read[name], self.drafts[name] = [*prompt], 0, []
        self.prompts[name] = len(prompt)
        self._new.append(
            SimpleNamespace(req_id=name, prompt_token_ids=prompt, sampling_params=sampling)
        )

    def drop(self, name: str) -> None:
        """A request finished, or was aborted."""
        for known in (self.requests, self.texts, self.read, self.drafts):
            known.pop(name, None)
        self.input_batch.req_ids = [n for n in self.input_batch.req_ids if n != name]

    def preempt(self, name: str) -> None:
        """Its cache is needed by others: its text is read anew later, its drafts are dropped."""
        self.read[name], self.drafts[name] = 0, []
        self.input_batch.req_ids = [n for n in self.input_batch.req_ids if n != name]

    def _update_states(self, scheduler_output: Any) -> None:
        """The runner's own; hooked by the proposer."""

    def step(
        self,
        proposer: Any,
        chaos: random.Random,
        cut: bool = False,
        chunk: int = 1000,
        propose: bool = True,
    ) -> dict[str, list[int]]:
        """One step of the engine; returns what was proposed for each row that committed.

        Args:
            proposer: called after the step, as vLLM does.
            chaos: moves rows.
            cut: verify fewer draft tokens than were proposed, as a scheduler or a grammar does.
            chunk: most tokens of a prompt to read.
            propose: without it the drafts are zeros, as near the context's end.
        """
        self._update_states(SimpleNamespace(scheduled_new_reqs=self._new))
        self._new = []
        running = list(self.input_batch.req_ids)
        running += [name for name in self.texts if name not in running]
        running = running[: self._rows]
        chaos.shuffle(running)
        self.input_batch.req_ids = running
        sampled = [self._advance(name, chaos, cut, chunk) for name in running]
        lengths = np.array([len(self.texts[name]) for name in running] or [0])
        ids = np.full((max(1, len(running)), CONTEXT), -7, np.int32)
        for place, name in enumerate(running):
            ids[place, : len(self.texts[name])] = self.texts[name]
        if not propose:
            for name in running:
                self.drafts[name] = [0] * GAMMA
            return {}
        chains = proposer.propose(sampled, lengths[: len(running)], ids)
        assert len(chains) == len(running)
        for name, chain in zip(running, chains, strict=True):
            self.drafts[name] = [*chain]
        return {
            name: chain
            for name, tokens, chain in zip(running, sampled, chains, strict=True)
            if tokens
        }

    def _advance(self, name: str, chaos: random.Random, cut: bool, chunk: int) -> list[int]:
        text = self.texts[name]
        unread = len(text) - self.read[name]
        if unread > 1:
            self.read[name] += min(unread, chunk)
            if self.read[name] < len(text):
                return []
        chain = self.drafts[name]
        if cut and chain:
            chain = chain[: chaos.randrange(len(chain))]
        committed: list[int] = []
        for token in [*chain, None]:
            committed.append(self._target(text + committed))
            if committed[-1] != token:
                break
        room = min(CONTEXT, self.prompts[name] + self.requests[name].sampling_params.max_tokens)
        committed = committed[: max(0, room - len(text))]
        text += committed
        self.read[name] = len(text) - 1
        return committed

    def full(self, name: str) -> bool:
        most = self.prompts[name] + self.requests[name].sampling_params.max_tokens
        return len(self.texts[name]) >= min(CONTEXT, most)
