"""Executors of all kinds: the same answers and errors wherever a worker runs."""

import os
import pickle
import select
import signal

import pytest
import torch

from specbranch.errors import ExecutorError, InputError
from specbranch.executors.base import PingRequest
from specbranch.executors.cpu_affinity import (
    AffinityPlan,
    CpuAffinity,
)
from specbranch.executors.inline import InlineExecutor
from specbranch.executors.process import ProcessExecutor
from specbranch.executors.start import start_drafter, start_executors
from specbranch.executors.thread import ThreadExecutor
from specbranch.executors.virtual import ModelLatency, Profile, VirtualClock, VirtualExecutor
from tests.integration.executor_workers import (
    CountRequest,
    Echo,
    EchoRequest,
    FailRequest,
    ForwardsRequest,
    WhereRequest,
    make_nothing,
)

CPU = torch.device("cpu")
CORE = min(os.sched_getaffinity(0))
CPUS = CpuAffinity(1, (CORE,))
PROFILE = ModelLatency({1: 1.0, 4: 4.0}, call=0.5)


MAKERS = {
    "inline": lambda make: InlineExecutor(make, "test"),
    "thread": lambda make: ThreadExecutor(make, "test", CpuAffinity(1), CPU),
    "process": lambda make: ProcessExecutor(make, "test", CPUS, timeout=30),
    "virtual": lambda make: VirtualExecutor(make, "test", PROFILE, VirtualClock()),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_executor_answers_in_order(kind):
    executor = MAKERS[kind](Echo)
    calls = [executor.submit(EchoRequest(i)) for i in range(20)]
    assert [call.result() for call in reversed(calls)] == list(range(19, -1, -1))
    starts = [call.span.start for call in calls]
    assert starts == sorted(starts)
    assert all(call.span.start <= call.span.end for call in calls)
    metered = executor.submit(ForwardsRequest((3, 1, 2)))
    assert metered.result() == 3
    assert metered.span.forwards == (3, 1, 2)
    with pytest.raises(InputError, match="that was wrong"):
        executor.submit(FailRequest(InputError("that was wrong"))).result()
    failing = executor.submit(FailRequest(MemoryError()))
    assert isinstance(failing.exception(), ExecutorError)
    assert str(failing.exception()) == "the test executor ran out of memory"
    assert executor.submit(EchoRequest("still there")).result() == "still there"
    executor.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_worker_that_cannot_be_made_says_why(kind):
    executor = MAKERS[kind](make_nothing)
    for _ in range(2):
        with pytest.raises(InputError, match="there is no such worker"):
            executor.submit(EchoRequest(1)).result()
    executor.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_call_can_be_stopped(kind):
    executor = MAKERS[kind](Echo)
    call, later = executor.submit(CountRequest(30_000)), executor.submit(EchoRequest("next"))
    call.stop()  # before, while or after it runs: each is allowed
    assert call.result() < 30_000
    assert later.result() == "next"
    call.stop()  # too late, and without effect on what follows
    assert executor.submit(CountRequest(5)).result() == 5
    executor.close()


def test_errors_of_executors_can_be_sent():
    error = pickle.loads(pickle.dumps(ExecutorError("draft", "died")))
    assert str(error) == "the draft executor died"
    assert error.executor == "draft"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_closed_executor_says_so(kind):
    executor = MAKERS[kind](Echo)
    assert executor.submit(PingRequest()).result() is None
    for _ in range(2):
        executor.close()
        executor.set_affinity(CPUS)  # without effect
        refused = executor.submit(EchoRequest(1))
        assert isinstance(refused.exception(), ExecutorError)
        assert str(refused.exception()) == "the test executor was closed"
        assert refused.span.forwards == ()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_fork_gets_an_error_and_leaves_the_executor_alone(kind):
    executor = MAKERS[kind](Echo)
    where = executor.submit(WhereRequest()).result()[0]
    pending = executor.submit(EchoRequest("pending"))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            errors = [executor.submit(EchoRequest(1)).exception()]
            if kind in ("process", "virtual"):  # what a thread has under way stays with it
                errors.append(pending.exception())
            executor.set_affinity(CPUS)
            pending.stop()
            executor.close()
            os.write(writer, "|".join(sorted(set(map(str, errors)))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        said = os.read(reader, 1000).decode() if select.select([reader], [], [], 30)[0] else "hangs"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
    expected = "the test executor belongs to another process: load the models after the fork"
    # A virtual executor runs what was submitted before when it is awaited, and not in a fork.
    assert said == expected
    assert pending.result() == "pending"
    assert executor.submit(WhereRequest()).result()[0] == where
    executor.close()


def test_executors_of_a_pair_are_started():
    devices, plan = {"target": CPU, "draft": CPU}, AffinityPlan(CPUS, CPUS, CPUS)
    for kind in ("inline", "thread", "process"):
        target, draft = start_executors(kind, Echo, Echo, devices, plan, timeout=30)
        assert (target.name, draft.name) == ("target", "draft")
        assert target.submit(EchoRequest(kind)).result() == kind
        assert draft.submit(EchoRequest(kind)).result() == kind
        draft.close()
        again = start_drafter(kind, Echo, CPU, plan, timeout=30)
        assert again.submit(EchoRequest(kind)).result() == kind
        again.close()
        target.close()
    assert start_executors("inline", Echo, None, devices, plan)[1] is None
    with pytest.raises(InputError, match="from a profile"):
        start_executors("virtual", Echo, Echo, devices, plan)
    target, draft = start_executors(
        "virtual", Echo, Echo, devices, plan, profile=Profile.of_ratio(8)
    )
    draft = start_drafter(
        "virtual", Echo, CPU, plan, profile=Profile.of_ratio(8), clock=target.clock
    )
    assert target.submit(ForwardsRequest((1,))).result() == 1
    assert draft.now() == target.now() == pytest.approx(8e-3)
