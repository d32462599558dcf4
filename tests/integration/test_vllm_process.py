"""The drafter of the vLLM integration in its own process, as vLLM's worker starts it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from specbranch.errors import ExecutorError, InputError
from specbranch.integrations.vllm.coordinator import Coordinator
from specbranch.integrations.vllm.link import ProcessLink
from specbranch.integrations.vllm.messages import Advance, News, Open, Reply, Sampling, Start, Step
from specbranch.integrations.vllm.sessions import Request, Row
from specbranch.zoo import BUNDLED

TEXT = list(range(40, 60))


def start(**changes: Any) -> Start:
    given: dict[str, Any] = {
        "draft": str(BUNDLED["draft"]),
        "target": str(BUNDLED["target"]),
        "dtype": "auto",
        "device": "cpu",
        "quantization": None,
        "eager": True,
        "cores": None,
        "vocabulary": 4096,
        "gamma": 3,
        "k_max": 4,
        "context": 512,
    }
    return Start(**given | changes)


def until(link: ProcessLink, seconds: float = 120.0) -> Iterator[News]:
    """News as they come; the test fails if none does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield from link.receive(1.0)
    pytest.fail("nothing came")


@pytest.fixture(scope="module")
def link() -> Iterator[ProcessLink]:
    made = ProcessLink(start(), None, timeout=2.0, startup_timeout=300.0)
    try:
        for _ in until(made):
            if made.ready:
                break
        yield made
    finally:
        made.close()


def test_a_prompt_is_answered_by_branches_and_a_hang_is_found_out(link: ProcessLink) -> None:
    text = np.array(TEXT, np.int32)
    link.send(Open(1, text[:5].tobytes(), False, Sampling(), 100))
    link.send(Open(1, text[5:].tobytes(), True, Sampling(), 100))
    link.send(Step(1, (Advance(1, 20, (), None, 20, 80),)))
    grown = first_growth(link)
    assert grown
    assert all(accepted == 0 for _, accepted, _, _ in grown)
    os.kill(link.pid, signal.SIGSTOP)
    link.send(Step(2, (Advance(1, 20, (5,), None, 21, 79),)))
    with pytest.raises(ExecutorError, match="did not answer for 2 s"):
        for _ in until(link):
            pass


def first_growth(link: ProcessLink) -> Any:
    for news in until(link):
        if isinstance(news, Reply) and news.grown:
            [(id, number, grown)] = news.grown
            assert (id, number) == (1, 1)
            return grown
    return None


def test_a_drafter_that_is_killed_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    made: list[ProcessLink] = []

    def connect() -> ProcessLink:
        made.append(ProcessLink(start(), None, 20.0, 300.0))
        return made[-1]

    coordinator = Coordinator(connect, 3, 0.0)
    request = Request(Sampling(), 500)
    text = list(TEXT)

    def step() -> list[list[int]]:
        text.append(7)
        row = Row("a", np.array(text, np.int32), True)
        return coordinator.propose([row], lambda name: request, {"a"})

    try:
        assert coordinator.wait_until_ready(300)
        step()
        os.kill(made[0].pid, signal.SIGKILL)
        end = time.monotonic() + 120
        while coordinator.metrics["restarts"] == 0 and time.monotonic() < end:
            assert len(step()) == 1
            time.sleep(0.05)  # as long as a verification
        assert [r.levelname for r in caplog.records if r.levelname != "INFO"] == ["WARNING"]
        assert "its process was killed" in caplog.text
        assert coordinator.wait_until_ready(300)
        opened = coordinator.metrics["opened"]
        step()
        assert coordinator.metrics["opened"] == opened + 1
    finally:
        coordinator.close()


@pytest.mark.parametrize(
    ("changes", "python", "says"),
    [
        ({"draft": "no/where"}, None, "no model 'no/where'"),
        ({}, "/no/python", "cannot start the drafter's interpreter"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_line(
    changes: dict[str, Any], python: str | None, says: str
) -> None:
    links: list[ProcessLink] = []

    def load() -> None:
        links.append(ProcessLink(start(**changes), python, 20.0, 300.0))
        for _ in until(links[0]):
            pass

    with pytest.raises(InputError, match=says):
        load()
    for link in links:
        link.close()
