"""The process executor: its cores, its environment, and what happens if its process fails."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from specbranch.errors import ExecutorError
from specbranch.executors.base import PingRequest
from specbranch.executors.cpu_affinity import (
    CpuAffinity,
)
from specbranch.executors.process import ProcessExecutor
from tests.integration.executor_workers import (
    CORE,
    CPUS,
    CountRequest,
    Echo,
    EchoRequest,
    ExitRequest,
    HangRequest,
    KillRequest,
    UnsendableErrorRequest,
    UnsendableRequest,
    VariablesRequest,
    WhereRequest,
    hang,
)


def gone(pid):
    """Whether a process has ended (and was waited for)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_process_has_its_own_cores(process):
    pid, cores, threads = process.submit(WhereRequest()).result()
    assert pid != os.getpid()
    assert (cores, threads) == ([CORE], 1)
    everything = tuple(sorted(os.sched_getaffinity(0)))
    process.set_affinity(CpuAffinity(2, everything))
    assert process.submit(WhereRequest()).result() == (pid, list(everything), 2)


def test_a_thread_stays_on_its_core_whatever_the_program_is_bound_to(monkeypatch):
    *others, last = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_PLACES", f"{{{CORE}}}")  # as batch systems do
    executor = ProcessExecutor(
        Echo, "test", CpuAffinity(1, (last,)), timeout=30, places=(last, *others)
    )
    try:
        assert executor.submit(WhereRequest()).result()[1:] == ([last], 1)
        executor.set_affinity(CpuAffinity(1 + len(others), (*others, last)))
        assert executor.submit(WhereRequest()).result()[1:] == ([last], 1 + len(others))
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        (KillRequest(), "the draft executor died: its process was killed (out of memory?)"),
        (KillRequest(signal.SIGSEGV), "the draft executor died: its process got SIGSEGV"),
        (ExitRequest(3), "the draft executor died: its process ended with exit code 3"),
    ],
)
def test_a_process_that_dies_is_one_clear_error(process, request_, how):
    pid = process.submit(WhereRequest()).result()[0]
    calls = [process.submit(request_), process.submit(EchoRequest(1))]
    for call in calls:
        with pytest.raises(ExecutorError) as caught:
            call.result()
        assert str(caught.value) == how
        assert caught.value.executor == "draft"
    with pytest.raises(ExecutorError):
        process.submit(EchoRequest(2)).result()
    assert gone(pid)


def test_a_process_that_hangs_is_given_up():
    executor = ProcessExecutor(Echo, "draft", CPUS, timeout=0.3)
    pid = executor.submit(WhereRequest()).result()[
        0
    ]  # making the worker may take longer than the timeout
    with pytest.raises(ExecutorError, match=r"did not answer for 0.3 s and was ended"):
        executor.submit(HangRequest()).result()
    executor.close()
    assert gone(pid)


def test_an_answer_that_cannot_be_sent_is_an_error(process):
    with pytest.raises(ExecutorError, match="cannot send its answer"):
        process.submit(UnsendableRequest()).result()
    assert process.submit(EchoRequest(1)).result() == 1


def test_an_interrupt_while_waiting_leaves_the_executor_in_order(process, interruptible):
    process.submit(WhereRequest()).result()
    call = process.submit(CountRequest(500))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        call.result()
    assert process.submit(EchoRequest("next")).result() == "next"
    assert call.result() == 500


def test_a_call_that_was_never_sent_takes_no_other_answer(process, monkeypatch, interruptible):
    """An interrupt may come just before it is sent."""
    assert process.submit(EchoRequest("first")).result() == "first"
    monkeypatch.setattr(process, "_send", lambda message: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        process.submit(EchoRequest("unsent"))
    monkeypatch.undo()
    assert process.submit(EchoRequest("next")).result() == "next"


def test_a_process_ends_with_the_program_that_started_it(tmp_path):
    """Even if that is killed and closes nothing."""
    program = (
        "import os, signal\n"
        "from specbranch.executors.cpu_affinity import CpuAffinity\n"
        "from specbranch.executors.process import ProcessExecutor\n"
        "from tests.integration.executor_workers import Echo, WhereRequest\n"
        "executor = ProcessExecutor(Echo, 'draft', CpuAffinity(1))\n"
        "print(executor.submit(WhereRequest()).result()[0], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # By name: the executor's process does not look into the folder that it is started in.
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


def test_an_error_that_cannot_be_sent_is_an_error(process):
    with pytest.raises(ExecutorError, match="cannot send its answer: TwoArgumentsError"):
        process.submit(UnsendableErrorRequest()).result()
    assert process.submit(EchoRequest(1)).result() == 1


def test_a_worker_whose_making_hangs_is_given_up():
    executor = ProcessExecutor(hang, "draft", CPUS, startup_timeout=0.5)
    with pytest.raises(ExecutorError) as caught:
        executor.submit(PingRequest()).result()
    assert str(caught.value) == "the draft executor was not ready after 0.5 s and was ended"
    executor.close()


def test_binding_of_threads_is_not_seen_by_libraries_loaded_later():
    """A second libgomp, such as that of sentencepiece, would print a warning about it."""
    names = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_SPINCOUNT")
    executor = ProcessExecutor(Echo, "test", CPUS, timeout=30, places=CPUS.cores)
    try:
        *binding, spins = executor.submit(VariablesRequest(names)).result()
        assert binding == [None, None]
        assert spins is not None
    finally:
        executor.close()
