"""Executors: the same answers wherever a worker runs, and what happens when it dies."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from specbranch.errors import ExecutorError, InputError
from specbranch.executors.cpu_affinity import (
    AffinityPlan,
    CpuAffinity,
    available,
    parse_cores,
    place,
)
from specbranch.executors.inline import InlineExecutor
from specbranch.executors.process import ProcessExecutor
from specbranch.executors.start import pick_executor
from specbranch.executors.thread import ThreadExecutor
from specbranch.executors.virtual import ModelLatency, Profile, VirtualClock, VirtualExecutor
from tests.executor_workers import Echo, make_nothing

CPU, GPU, OTHER_GPU = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
CORE = min(os.sched_getaffinity(0))
SHARE = CpuAffinity(1, (CORE,))
PROFILE = ModelLatency({1: 1.0, 4: 4.0}, call=0.5)

MAKERS = {
    "inline": lambda make: InlineExecutor(make, "test"),
    "thread": lambda make: ThreadExecutor(make, "test", CpuAffinity(1), CPU),
    "process": lambda make: ProcessExecutor(make, "test", SHARE, timeout=30),
    "virtual": lambda make: VirtualExecutor(make, "test", PROFILE, VirtualClock()),
}


def gone(pid):
    """Whether a process has ended (and was waited for)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def process():
    executor = ProcessExecutor(Echo, "draft", SHARE, timeout=30)
    yield executor
    executor.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_lane_answers_in_order(kind):
    executor = MAKERS[kind](Echo)
    calls = [executor.submit("echo", i) for i in range(20)]
    assert [call.result() for call in reversed(calls)] == list(range(19, -1, -1))
    starts = [call.span.start for call in calls]
    assert starts == sorted(starts)
    assert all(call.span.start <= call.span.end for call in calls)
    metered = executor.submit("forwards", 3, 1, 2)
    assert metered.result() == 3
    assert metered.span.forwards == (3, 1, 2)
    with pytest.raises(InputError, match="that was wrong"):
        executor.submit("fail", InputError("that was wrong")).result()
    failing = executor.submit("fail", MemoryError())
    assert isinstance(failing.exception(), ExecutorError)
    assert str(failing.exception()) == "the test executor ran out of memory"
    assert executor.submit("echo", "still there").result() == "still there"
    executor.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_worker_that_cannot_be_made_says_why(kind):
    executor = MAKERS[kind](make_nothing)
    for _ in range(2):
        with pytest.raises(InputError, match="there is no such worker"):
            executor.submit("echo", 1).result()
    executor.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_call_can_be_stopped(kind):
    executor = MAKERS[kind](Echo)
    call, later = executor.submit("count", 30_000), executor.submit("echo", "next")
    while call.running():  # nothing to wait for: the stop may come at any time
        pass
    call.stop()
    assert call.result() < 30_000
    assert later.result() == "next"
    call.stop()  # too late, and without effect on what follows
    assert executor.submit("count", 5).result() == 5
    executor.close()


def test_a_process_has_its_own_cores(process):
    pid, cores, threads = process.submit("where").result()
    assert pid != os.getpid()
    assert (cores, threads) == ([CORE], 1)
    everything = tuple(sorted(os.sched_getaffinity(0)))
    process.set_affinity(CpuAffinity(2, everything))
    assert process.submit("where").result() == (pid, list(everything), 2)


def test_a_thread_stays_on_its_core_whatever_the_program_is_bound_to(monkeypatch):
    *others, last = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_PLACES", f"{{{CORE}}}")  # as batch systems do
    executor = ProcessExecutor(
        Echo, "test", CpuAffinity(1, (last,)), timeout=30, places=(last, *others)
    )
    try:
        assert executor.submit("where").result()[1:] == ([last], 1)
        executor.set_affinity(CpuAffinity(1 + len(others), (*others, last)))
        assert executor.submit("where").result()[1:] == ([last], 1 + len(others))
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("method", "args", "how"),
    [
        ("die", (), "the draft executor died: its process was killed (out of memory?)"),
        ("die", (signal.SIGSEGV,), "the draft executor died: its process got SIGSEGV"),
        ("leave", (3,), "the draft executor died: its process ended with exit code 3"),
    ],
)
def test_a_process_that_dies_is_one_clear_error(process, method, args, how):
    pid = process.submit("where").result()[0]
    calls = [process.submit(method, *args), process.submit("echo", 1)]
    for call in calls:
        with pytest.raises(ExecutorError) as caught:
            call.result()
        assert str(caught.value) == how
        assert caught.value.executor == "draft"
    with pytest.raises(ExecutorError):
        process.submit("echo", 2).result()
    assert gone(pid)


def test_a_process_that_hangs_is_given_up():
    executor = ProcessExecutor(Echo, "draft", SHARE, timeout=0.3)
    pid = executor.submit("where").result()[0]  # making the worker may take longer than the timeout
    with pytest.raises(ExecutorError, match=r"did not answer for 0.3 s and was ended"):
        executor.submit("hang").result()
    executor.close()
    assert gone(pid)


def test_an_answer_that_cannot_be_sent_is_an_error(process):
    with pytest.raises(ExecutorError, match="cannot send its answer"):
        process.submit("lambda_").result()
    assert process.submit("echo", 1).result() == 1


def test_an_interrupt_while_waiting_leaves_the_lane_in_order(process, interruptible):
    process.submit("where").result()
    call = process.submit("count", 500)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        call.result()
    assert process.submit("echo", "next").result() == "next"
    assert call.result() == 500


def test_a_call_that_was_never_sent_takes_no_other_answer(process, monkeypatch, interruptible):
    """An interrupt may come just before it is sent."""
    assert process.submit("echo", "first").result() == "first"
    monkeypatch.setattr(process, "_send", lambda message: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        process.submit("echo", "unsent")
    monkeypatch.undo()
    assert process.submit("echo", "next").result() == "next"


def test_a_process_ends_with_the_program_that_started_it(tmp_path):
    """Even if that is killed and closes nothing."""
    import subprocess

    program = (
        "import os, signal\n"
        "from specbranch.executors.cpu_affinity import CpuAffinity\n"
        "from specbranch.executors.process import ProcessExecutor\n"
        "from tests.executor_workers import Echo\n"
        "executor = ProcessExecutor(Echo, 'draft', CpuAffinity(1))\n"
        "print(executor.submit('where').result()[0], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # By name: the executor's process does not look into the folder that it is started in.
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pid)


def test_errors_of_lanes_can_be_sent():
    error = pickle.loads(pickle.dumps(ExecutorError("draft", "died")))
    assert str(error) == "the draft executor died"
    assert error.executor == "draft"


class TestVirtualClock:
    """Times computed by hand: a forward of n tokens takes n seconds, a call half a second."""

    def pair(self):
        clock = VirtualClock()
        executors = [VirtualExecutor(Echo, name, PROFILE, clock) for name in ("draft", "target")]
        return clock, *executors

    def test_lanes_overlap(self):
        clock, draft, target = self.pair()
        branching, verifying = draft.submit("forwards", 1, 1), target.submit("forwards", 4)
        assert clock.now == 0
        verifying.result()
        assert clock.now == 4.5
        branching.result()
        assert clock.now == 4.5  # it was done before
        assert (branching.span.start, branching.span.end) == (0, 2.5)
        after = draft.submit("forwards", 1)
        after.result()
        assert (after.span.start, after.span.end) == (4.5, 6.0)
        assert draft.now() == target.now() == 6.0

    def test_calls_of_one_lane_follow_each_other(self):
        clock, draft, _ = self.pair()
        first, second = draft.submit("forwards", 2), draft.submit("forwards", 1)
        second.result()
        assert (first.span.end, second.span.start, second.span.end) == (2.5, 2.5, 4.0)
        assert clock.now == 4.0

    def test_a_stop_comes_at_the_callers_time(self):
        _, draft, target = self.pair()
        counting = draft.submit("count", 1000)
        target.submit("forwards", 4).result()
        counting.stop()
        # Steps end at 1.5, 2.5, 3.5, 4.5: the fourth is the first to see the stop at 4.5.
        assert counting.result() == 3
        assert counting.span.end == 4.5

    def test_costs_between_the_numbers_given(self):
        costs = ModelLatency({1: 1.0, 5: 3.0})
        assert [costs.seconds(n) for n in (1, 2, 3, 5, 50)] == [1.0, 1.5, 2.0, 3.0, 3.0]
        ratio = Profile.of_ratio(8, branch_cost=0.5, step=2.0)
        assert ratio.target.seconds(16) == 16.0
        assert [ratio.draft.seconds(k) for k in (1, 2, 3)] == [2.0, 3.0, 4.0]

    def test_profiles_are_files(self, tmp_path):
        file = tmp_path / "profile.json"
        profile = Profile(ModelLatency({1: 0.5, 8: 0.75}, call=0.125), ModelLatency({1: 0.25}))
        profile.save(file)
        assert Profile.load(file) == profile

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("[]", "is no profile"),
            ('{"target": {"forward": {"1": 1}}}', "is no profile"),
            ('{"target": {"forward": {}}, "draft": {"forward": {"1": 1}}}', "1 or more tokens"),
            ('{"target": {"forward": {"1": -1}}, "draft": {"forward": {"1": 1}}}', "needs seconds"),
        ],
    )
    def test_what_is_no_profile(self, tmp_path, content, complaint):
        file = tmp_path / "profile.json"
        file.write_text(content)
        with pytest.raises(InputError, match=complaint):
            Profile.load(file)


class TestPlacement:
    def machine(self, monkeypatch, cores, quota=None, siblings=1):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        module = sys.modules["specbranch.executors.cpu_affinity"]
        monkeypatch.setattr(module, "_quota", lambda: quota)
        first = [core // siblings * siblings for core in range(cores)]
        groups = [set(range(f, f + siblings)) for f in first]
        monkeypatch.setattr(module, "_siblings", groups.__getitem__)

    @pytest.mark.parametrize(
        ("cores", "target", "draft"),
        [(2, (0,), (1,)), (4, (0, 1, 2), (3,)), (8, (0, 1, 2, 3, 4, 5), (6, 7))],
    )
    def test_two_models_on_a_cpu_share_its_cores(self, monkeypatch, cores, target, draft):
        self.machine(monkeypatch, cores)
        everything = CpuAffinity(cores, tuple(range(cores)))
        shares = CpuAffinity(len(target), target), CpuAffinity(len(draft), draft)
        affinity = place(CPU, CPU)
        assert affinity == AffinityPlan(*shares, everything)
        assert affinity.share("target", overlap=True) == shares[0]
        assert affinity.share("draft", overlap=True) == shares[1]
        assert affinity.share("draft", overlap=False) == everything

    def test_a_model_on_a_gpu_needs_one_core(self, monkeypatch):
        self.machine(monkeypatch, 8)
        assert place(GPU, CPU).draft.threads == 7
        assert place(GPU, CPU).target.threads == 1
        assert place(CPU, GPU).target.threads == 7
        assert place(GPU, OTHER_GPU).draft.threads == 1

    def test_hardware_threads_of_one_core_count_once(self, monkeypatch):
        self.machine(monkeypatch, 8, siblings=2)
        assert available() == CpuAffinity(4, (0, 2, 4, 6))

    def test_a_quota_gives_time_but_no_cores(self, monkeypatch):
        self.machine(monkeypatch, 64, quota=2.0)
        affinity = place(CPU, CPU)
        assert affinity == AffinityPlan(CpuAffinity(1), CpuAffinity(1), CpuAffinity(2))

    def test_one_core_is_shared(self, monkeypatch):
        self.machine(monkeypatch, 1)
        assert place(CPU, CPU) == AffinityPlan(CpuAffinity(1), CpuAffinity(1), CpuAffinity(1, (0,)))
        assert pick_executor("auto", CPU, CPU, overlap=True) == "inline"

    def test_what_the_user_says_goes(self, monkeypatch):
        self.machine(monkeypatch, 8)
        affinity = place(CPU, CPU, "0-1,4", "5")
        assert affinity.target == CpuAffinity(3, (0, 1, 4))
        assert affinity.draft == CpuAffinity(1, (5,))
        assert affinity.alone == CpuAffinity(4, (0, 1, 4, 5))
        # The other model gets the rest.
        assert place(CPU, CPU, "0-1").draft == CpuAffinity(6, tuple(range(2, 8)))
        assert place(CPU, CPU, None, "0-1").target == CpuAffinity(6, tuple(range(2, 8)))
        with pytest.raises(InputError, match=r"no core is left .* with --draft-cores"):
            place(CPU, CPU, "0-7")

    def test_a_quota_bounds_what_the_user_leaves_over(self, monkeypatch):
        self.machine(monkeypatch, 64, quota=4.0)
        affinity = place(CPU, CPU, None, "0")
        assert affinity.target == CpuAffinity(3, tuple(range(1, 64)))
        assert affinity.alone == CpuAffinity(4, tuple(range(64)))

    @pytest.mark.parametrize("given", ["", "a", "1-", "0,,1", "0;1"])
    def test_what_is_no_list_of_cores(self, given):
        with pytest.raises(InputError, match="cores must be a list such as 0-3,6"):
            parse_cores(given)

    def test_cores_that_are_not_there(self, monkeypatch):
        self.machine(monkeypatch, 2)
        with pytest.raises(InputError, match="core 7 is not there: this process may use 0, 1"):
            parse_cores("0,7")

    def test_lanes_for_devices(self, monkeypatch):
        self.machine(monkeypatch, 2)
        assert pick_executor("auto", CPU, CPU, overlap=True) == "process"
        assert pick_executor("auto", CPU, CPU, overlap=False) == "inline"
        assert pick_executor("auto", GPU, GPU, overlap=True) == "thread"
        assert pick_executor("auto", GPU, OTHER_GPU, overlap=True) == "process"
        assert pick_executor("auto", GPU, CPU, overlap=True) == "process"
        with pytest.raises(InputError, match="unknown executors 'fast': use auto, process"):
            pick_executor("fast", CPU, CPU, overlap=True)


@pytest.mark.parametrize(
    ("program", "own", "expected"),
    [
        ("import specbranch, torch", None, "10000"),
        ("import specbranch", "7", "7"),
        ("import torch, specbranch", None, "None"),  # too late: libgomp is loaded
    ],
)
def test_threads_do_not_spin_for_long(program, own, expected):
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    if own is not None:
        environment["GOMP_SPINCOUNT"] = own
    told = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", f"{program}; {told}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
