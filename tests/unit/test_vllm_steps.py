"""The proposer against a simulated runner that replays vLLM's hard cases.

Whatever happens, a proposed chain must be what a fresh draft model would say after the row's text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from specbranch.integrations.vllm import drafter_loop
from specbranch.integrations.vllm.coordinator import Coordinator
from specbranch.integrations.vllm.proposer import Proposer
from specbranch.integrations.vllm.versions import RunnerView
from tests.tables import imitation, random_table
from tests.vllm_runner import CONTEXT, GAMMA, VOCABULARY, Clock, FakeRunner, LoopLink, Next


def greedy(table: Callable[[tuple[int, ...]], Any]) -> Next:
    return lambda text: int(table(tuple(text)).argmax())


def make_proposer(runner: FakeRunner | None, connect: Callable[[], LoopLink]) -> Proposer:
    """A proposer whose drafters are made by the test."""
    config = SimpleNamespace(
        additional_config={"specbranch": {"draft": "table"}},
        speculative_config=SimpleNamespace(num_speculative_tokens=GAMMA),
        model_config=SimpleNamespace(
            max_model_len=CONTEXT, tokenizer=None, model="table", get_vocab_size=lambda: VOCABULARY
        ),
    )
    proposer = Proposer(config)
    proposer._loaded = True
    clock = Clock()
    proposer._coordinator = Coordinator(connect, GAMMA, 0.05, clock=clock)
    if runner is not None:
        proposer._runner = RunnerView(runner, CONTEXT)
        proposer._runner.on_schedule(proposer._scheduled)
    return proposer


def check(chains: dict[str, list[int]], texts: dict[str, list[int]], draft: Next) -> None:
    """Every chain is what a fresh draft says after its text."""
    for name, chain in chains.items():
        path = list(texts[name])
        assert len(chain) <= GAMMA
        for token in chain:
            assert token == draft(path)
            path.append(token)


class Steps(RuleBasedStateMachine):
    """A runner, its proposer, and a drafter of which everything can be asked at any time."""

    named = True  # requests have names, as the runner gives them

    @initialize(
        seed=st.integers(0, 50),
        noise=st.sampled_from([0.0, 0.5, 10.0]),
        rows=st.integers(1, 4),
        slice=st.sampled_from([1, 3, 100]),
    )
    def begin(self, seed: int, noise: float, rows: int, slice: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(drafter_loop, "SLICE", slice)
        table = random_table(seed, VOCABULARY)
        self.draft = greedy(random_table(seed, VOCABULARY))
        self.target = greedy(imitation(table, seed + 1, VOCABULARY, noise))
        self.chaos = random.Random(seed)
        self.clock = Clock()
        self.links: list[LoopLink] = []
        self.runner = FakeRunner(self.target, rows)
        self.proposer = make_proposer(self.runner if self.named else None, self._connect(seed))
        self.coordinator = self.proposer._coordinator
        assert self.coordinator is not None
        self.coordinator._clock = self.clock
        self.names = 0

    def _connect(self, seed: int) -> Callable[[], LoopLink]:
        def connect() -> LoopLink:
            self.links.append(LoopLink(seed, self.clock))
            return self.links[-1]

        return connect

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    @rule(
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12),
        most=st.integers(1, 40),
        copies=st.integers(1, 2),
    )
    def arrives(self, prompt: list[int], most: int, copies: int) -> None:
        for _ in range(copies if len(self.runner.texts) < 6 else 0):
            self.runner.add(f"r{self.names}", prompt, most)
            self.names += 1

    @rule(cut=st.booleans(), chunk=st.sampled_from([2, 1000]), work=st.integers(0, 8))
    def steps(self, cut: bool, chunk: int, work: int) -> None:
        self._step(cut=cut, chunk=chunk)
        self.links[-1].work(work)

    @rule(count=st.integers(1, 6), work=st.integers(6, 30))
    def steps_often(self, count: int, work: int) -> None:
        for _ in range(count):
            self._step()
            self.links[-1].work(work)

    def _step(self, **how: Any) -> set[str]:
        """One step, its chains checked; returns the requests that ended with it."""
        chains = self.runner.step(self.proposer, self.chaos, **how)
        assert self.proposer.metrics["faults"] == 0
        check(chains, self.runner.texts, self.draft)
        ended = {name for name in self.runner.texts if self.runner.full(name)}
        for name in ended:
            self.runner.drop(name)
        return ended

    @rule()
    def nobody_proposes(self) -> None:
        """A row is so near the context's end that vLLM verifies zeros."""
        self._step(propose=False)

    @precondition(lambda self: self.runner.texts)
    @rule(which=st.integers(0, 5), again=st.booleans())
    def is_aborted(self, which: int, again: bool) -> None:
        name = sorted(self.runner.texts)[which % len(self.runner.texts)]
        self.runner.drop(name)
        if again:  # another request of the same name, before the proposer sees that it ended
            self.runner.add(name, [which % VOCABULARY, 1, 2], 30)

    @precondition(lambda self: self.runner.input_batch.req_ids)
    @rule(which=st.integers(0, 5))
    def is_preempted(self, which: int) -> None:
        running = self.runner.input_batch.req_ids
        self.runner.preempt(running[which % len(running)])

    @rule(wait=st.sampled_from([0.0, 5.0, 100.0]))
    def drafter_dies(self, wait: float) -> None:
        self.links[-1].dead = True
        self._step()
        self.clock.now += wait

    @rule(pieces=st.integers(0, 6), lags=st.booleans())
    def drafter_is_slow(self, pieces: int, lags: bool) -> None:
        self.links[-1].during_waits, self.links[-1].lags = pieces, lags

    @precondition(lambda self: self.named)
    @rule()
    def nothing_leaks(self) -> None:
        assert self.coordinator is not None
        ended = self._step()
        link = self.links[-1]
        if not link.dead and self.coordinator.link is link and link.ready:
            link.work(1000)
            known = self.coordinator.sessions._sessions
            assert set(link.drafter._trees) == {session.id for session in known.values()}
            assert set(known) <= set(self.runner.requests) | ended


class UnnamedSteps(Steps):
    """With an unknown version of vLLM: requests are told apart by their text."""

    named = False


TestSteps = Steps.TestCase
TestSteps.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestUnnamedSteps = UnnamedSteps.TestCase
TestUnnamedSteps.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, derandomize=True
)


def serve(runner: FakeRunner, proposer: Proposer, link: LoopLink, work: int = 100) -> None:
    """Run all requests to their ends."""
    chaos = random.Random(0)
    while runner.texts:
        runner.step(proposer, chaos)
        link.work(work)
        for name in [name for name in runner.texts if runner.full(name)]:
            runner.drop(name)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("pace", [1, 2, 4])
def test_a_drafter_at_any_pace_says_what_a_fresh_draft_does(
    noise: float, lags: bool, pace: int
) -> None:
    """Long runs in which replies come in the middle of steps, and the scheduler cuts chains."""
    table = random_table(5, VOCABULARY)
    runner = FakeRunner(greedy(imitation(table, 6, VOCABULARY, noise)), 3)
    link = LoopLink(5, Clock())
    link.lags = lags
    proposer = make_proposer(runner, lambda: link)
    chaos = random.Random(pace)
    for number in range(120):
        if len(runner.texts) < 4:
            runner.add(f"r{number}", [chaos.randrange(VOCABULARY) for _ in range(4)], 40)
        chains = runner.step(proposer, chaos, cut=chaos.random() < 0.2)
        check(chains, runner.texts, greedy(table))
        link.work(chaos.randrange(2 * pace + 1))
        for name in [name for name in runner.texts if runner.full(name)]:
            runner.drop(name)
    assert proposer.metrics["faults"] == 0
    assert proposer.metrics["hit"] > 5


def test_a_draft_that_is_right_hits_at_every_step_and_is_verified_whole() -> None:
    target = greedy(random_table(3, VOCABULARY))
    runner = FakeRunner(target, 4)
    link = LoopLink(3, Clock())
    proposer = make_proposer(runner, lambda: link)
    for name in "abcd":
        runner.add(name, [1, 2, ord(name) % VOCABULARY], 40)
    serve(runner, proposer, link)
    counted = proposer.metrics
    assert counted["miss"] == counted["late"] == counted["cut"] == counted["held"] == 0
    assert counted["hit"] > 30
    # All but the first verification, for which nothing was prepared, and the last, which is short.
    assert proposer._coordinator is not None
    assert proposer._coordinator.metrics.mean_acceptance_length > GAMMA


def test_a_drafter_that_never_gets_to_work_costs_nothing_but_drafts() -> None:
    target = greedy(random_table(3, VOCABULARY))
    runner = FakeRunner(target, 2)
    link = LoopLink(3, Clock())
    proposer = make_proposer(runner, lambda: link)
    runner.add("a", [1, 2], 20)
    serve(runner, proposer, link, work=0)
    assert proposer.metrics["proposed_tokens"] == 0
    assert proposer.metrics["held"] + proposer.metrics["late"] == 19


def test_a_drafter_that_dies_costs_one_warning_and_is_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = greedy(random_table(3, VOCABULARY))
    runner = FakeRunner(target, 2)
    links: list[LoopLink] = []

    def connect() -> LoopLink:
        links.append(LoopLink(3, Clock()))
        return links[-1]

    proposer = make_proposer(runner, connect)
    assert proposer._coordinator is not None
    clock = proposer._coordinator._clock
    assert isinstance(clock, Clock)
    runner.add("a", [1, 2], 50)
    chaos = random.Random(0)
    for _ in range(3):
        runner.step(proposer, chaos)
        links[-1].work(100)
    links[-1].dead = True
    for _ in range(3):
        assert runner.step(proposer, chaos) == {"a": []}
    assert links[0].closed
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "died" in caplog.text
    clock.now += 2
    found = []
    for _ in range(4):
        found.append(runner.step(proposer, chaos)["a"])
        links[-1].work(100)
    assert len(links) == 2
    assert proposer.metrics["restarts"] == 1
    assert found[-1]


def test_memory_that_runs_out_rests_one_text_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    target = greedy(random_table(3, VOCABULARY))
    runner = FakeRunner(target, 2)
    link = LoopLink(3, Clock())
    read_on = link.drafter.read_on

    def short_of_memory(id: int, most: int) -> int:
        if len(link.drafter._trees[id].tokens) > 10 and most:
            raise MemoryError
        return read_on(id, most)

    monkeypatch.setattr(link.drafter, "read_on", short_of_memory)
    proposer = make_proposer(runner, lambda: link)
    runner.add("short", [1, 2], 8)
    runner.add("long", [1, 2] * 6, 30)
    serve(runner, proposer, link)
    assert proposer.metrics["resting"] == 1
    assert proposer.metrics["hit"] > 0
    assert not link.drafter._trees or set(link.drafter._trees) != {1}


def test_a_fault_of_the_proposer_itself_does_not_end_vllm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = FakeRunner(greedy(random_table(3, VOCABULARY)), 2)
    link = LoopLink(3, Clock())
    proposer = make_proposer(runner, lambda: link)
    assert proposer._coordinator is not None
    monkeypatch.setattr(proposer._coordinator.sessions, "advance", lambda rows: 1 / 0)
    runner.add("a", [1, 2], 20)
    assert runner.step(proposer, random.Random(0)) == {"a": []}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ZeroDivisionError" in caplog.text
    assert proposer.metrics["faults"] == 1
    assert link.closed
