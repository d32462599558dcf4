"""The drafter's loop: messages first, then branches of all texts, then prompts in slices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specbranch.executors.base import out_of_memory
from specbranch.integrations.vllm.messages import (
    Advance,
    Chain,
    Grown,
    News,
    Open,
    Reply,
    Resting,
    Sampling,
    Start,
    Step,
)
from specbranch.policy.draft_length import DraftLengthPolicy
from specbranch.policy.latency import LatencyEstimate
from specbranch.sampling_params import SamplingParams
from specbranch.workers.branch_stage import BranchStage
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import Branch, BranchText, CommitUpdate, DraftText, OpenText

SLICE = 128  # tokens of a prompt that are read at once; replies wait for no longer
# Growth steps of a stage before a slice is read, where the stage does not end before the next one.
STEPS_BEFORE_SLICE = 2


@dataclass
class Stage:
    """The branch stage that runs.

    Attributes:
        texts: with the numbers of the steps in which they advanced.
        branches: of the drafter.
        told: how many tokens of each branch were told, by text.
        steps: taken so far.
    """

    texts: Sequence[tuple[int, int]]
    branches: BranchStage
    told: list[list[int]]
    steps: int = 0


class DrafterLoop:
    """Takes messages and does work, a short piece at a time.

    Args:
        drafter: empty.
        start: the limits.
        positions: most tokens of a text that the draft can read.
        send: gets the news.
        clock: seconds.
    """

    def __init__(
        self,
        drafter: Drafter,
        start: Start,
        positions: int,
        send: Callable[[News], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._drafter = drafter
        self._start = start
        self._positions = positions
        self._send = send
        self._clock = clock
        self._arriving: dict[int, list[bytes]] = {}
        self._unread: dict[int, int] = {}  # of each open text, tokens that the cache lacks
        self._due: dict[int, tuple[int, Advance]] = {}
        self._stage: Stage | None = None
        self._step_latency = LatencyEstimate()
        self._number = 0
        self._answered = True
        self._sliced = True

    @property
    def busy(self) -> bool:
        """Whether there is work to do without another message."""
        reads = any(self._unread.values())
        return bool(self._stage is not None or reads or not self._answered or self._ready())

    def take(self, message: Open | Step) -> None:
        """Take in a message, and commit what it tells."""
        if isinstance(message, Open):
            self._open(message)
            return
        self._end_stage()
        self._number, self._answered = message.number, False
        for id in message.closed:
            self._drop(id)
        for advance in message.texts:
            id = advance.id
            if id not in self._unread:
                continue  # it was closed, because memory ran out
            committed = None if advance.tokens else advance.committed
            update = CommitUpdate(advance.length, [*advance.tokens], advance.survivor, committed)
            self._drafter.commit([(id, update)])
            if self._unread[id]:
                self._unread[id] = self._drafter.read_on(id, 0)
            self._due[id] = message.number, advance
        self._sliced = not any(self._unread.values())

    def work(self) -> None:
        """Do the most urgent piece of work."""
        if self._stage is None and (ready := self._ready()):
            self._guarded(ready, lambda: self._begin(ready))
        elif not self._answered:
            self._tell(Reply(self._number))
        elif self._stage is not None and not self._slice_is_due(self._stage):
            stage = self._stage
            self._guarded([id for id, _ in stage.texts], lambda: self._grow(stage))
        else:
            unread = [id for id, count in self._unread.items() if count][:1]
            self._guarded(unread, lambda: self._read(unread))

    def _slice_is_due(self, stage: Stage) -> bool:
        return not self._sliced and stage.steps >= STEPS_BEFORE_SLICE

    def _open(self, message: Open) -> None:
        parts = self._arriving.setdefault(message.id, [])
        parts.append(message.tokens)
        if not message.last:
            return
        del self._arriving[message.id]
        prompt = np.frombuffer(b"".join(parts), np.int32).tolist()
        start = self._start
        text = OpenText(
            message.id,
            prompt,
            params_of(message.sampling),
            min(message.capacity, self._positions) + start.gamma + 1,
            start.vocabulary,
            branch_tokens=(start.k_max + 1) * (start.gamma + 2),
            certain=True,
        )
        if len(prompt) + 1 >= self._positions:
            self._send(Resting((message.id,)))  # the draft cannot read it
            return
        self._drafter.open([text], read=False)
        self._unread[message.id] = len(prompt) - 1

    def _ready(self) -> list[int]:
        """Texts that advanced and are read, for which nothing is prepared yet."""
        return [id for id in self._due if not self._unread[id]]

    def _begin(self, ready: Sequence[int]) -> None:
        """Answer what is waited for, and start branches."""
        due = {id: self._due.pop(id) for id in ready}
        wanted = {id: advance for id, (_, advance) in due.items() if advance.wanted}
        chains: dict[int, Chain] = {}
        if wanted:
            drafts = self._drafter.draft([self._draft_text(a) for a in wanted.values()])
            for id, draft in zip(wanted, drafts, strict=True):
                chains[id] = Chain(tuple(draft.tokens), tuple(draft.acceptance))
            self._tell(
                Reply(
                    self._number,
                    chains=tuple((id, due[id][0], chain) for id, chain in chains.items()),
                )
            )
        texts = []
        for id, (number, advance) in due.items():
            # The commit was applied before: the path is what it left, and the new chain.
            length = advance.length + len(advance.tokens)
            length += len(chains[id].tokens) if id in chains else 0
            limits = advance.room, self._positions - advance.committed, 2 * self._start.gamma + 2
            if length < self._positions and min(limits) > 0:
                texts.append((number, self._branch_text(id, length, min(limits))))
        if not texts:
            if not self._answered:
                self._tell(Reply(self._number))
            return
        stage = self._drafter.start_branches([text for _, text in texts])
        ids = [(text.id, number) for number, text in texts]
        self._stage = Stage(ids, stage, [[] for _ in texts])
        self._tell_growth(self._stage)

    def _draft_text(self, advance: Advance) -> DraftText:
        length = advance.length + len(advance.tokens)
        most = min(advance.wanted, self._start.gamma, advance.room - 1, self._positions - length)
        retrieval = most if self._start.retrieval else 0
        return DraftText(
            advance.id, CommitUpdate(length), max(0, most), DraftLengthPolicy(), max(0, retrieval)
        )

    def _branch_text(self, id: int, length: int, room: int) -> BranchText:
        gamma = self._start.gamma
        return BranchText(
            id,
            CommitUpdate(length),
            room,
            gamma,
            self._start.k_max,
            "outcomes",
            retrieval=gamma if self._start.retrieval else 0,
        )

    def _grow(self, stage: Stage) -> None:
        line = self._step_latency.line if self._step_latency.known else None
        begun = self._clock()
        count = stage.branches.grow(line)
        if not count:
            self._end_stage()
            return
        self._step_latency.observe(count, self._clock() - begun)
        stage.steps += 1
        self._tell_growth(stage)

    def _tell_growth(self, stage: Stage) -> None:
        news = []
        for (id, number), branches, told in zip(
            stage.texts, stage.branches.branches(), stage.told, strict=True
        ):
            if grown := tuple(_growth(branches, told)):
                news.append((id, number, grown))
        if news or not self._answered:
            self._tell(Reply(self._number, grown=tuple(news)))

    def _tell(self, reply: Reply) -> None:
        self._answered = True
        self._send(reply)

    def _read(self, ids: Sequence[int]) -> None:
        self._sliced = True
        for id in ids:
            self._unread[id] = self._drafter.read_on(id, SLICE)

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.branches.finish()
            self._stage = None

    def _guarded(self, ids: Sequence[int], work: Callable[[], None]) -> None:
        """Give up these texts if memory runs out.

        Raises:
            Exception: any other error of the work.
        """
        try:
            work()
        except Exception as error:
            if out_of_memory("draft", error) is None:
                raise
            self._stage = None
            for id in ids:
                self._drop(id)
            self._send(Resting(tuple(ids)))

    def _drop(self, id: int) -> None:
        self._arriving.pop(id, None)
        self._due.pop(id, None)
        if self._unread.pop(id, None) is not None:
            self._drafter.close([id])


def params_of(sampling: Sampling) -> SamplingParams:
    """The draft's parameters; a verifier that takes drafts as certain needs no seed."""
    return replace(
        SamplingParams(),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )


def _growth(branches: Sequence[Branch], told: list[int]) -> list[Grown]:
    """What was not told yet; notes that it is."""
    grown = []
    for index, branch in enumerate(branches):
        if index == len(told):
            told.append(0)
        before, told[index] = told[index], len(branch)
        if before == len(branch):
            continue
        rest = branch.continuation
        first = (branch.candidate,) if before == 0 else ()
        seen = max(0, before - 1)
        tokens = (*first, *rest.tokens[seen:])
        grown.append((index, branch.accepted, tokens, tuple(rest.acceptance[seen:])))
    return grown
