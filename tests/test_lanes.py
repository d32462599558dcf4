"""Lanes: the same answers wherever a worker runs, and what happens when it dies."""

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

from specbranch.errors import InputError, LaneError
from specbranch.lanes.inline import InlineLane
from specbranch.lanes.placement import Placement, Share, available, parse_cores, place
from specbranch.lanes.process import ProcessLane
from specbranch.lanes.start import pick_lanes
from specbranch.lanes.thread import ThreadLane
from specbranch.lanes.virtual import Costs, Profile, VirtualClock, VirtualLane
from tests.lane_workers import Echo, make_nothing

CPU, GPU, OTHER_GPU = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")
CORE = min(os.sched_getaffinity(0))
SHARE = Share(1, (CORE,))
PROFILE = Costs({1: 1.0, 4: 4.0}, call=0.5)

MAKERS = {
    "inline": lambda make: InlineLane(make, "test"),
    "thread": lambda make: ThreadLane(make, "test", Share(1), CPU),
    "process": lambda make: ProcessLane(make, "test", SHARE, timeout=30),
    "virtual": lambda make: VirtualLane(make, "test", PROFILE, VirtualClock()),
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
    lane = ProcessLane(Echo, "draft", SHARE, timeout=30)
    yield lane
    lane.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_lane_answers_in_order(kind):
    lane = MAKERS[kind](Echo)
    calls = [lane.submit("echo", i) for i in range(20)]
    assert [call.result() for call in reversed(calls)] == list(range(19, -1, -1))
    starts = [call.span.start for call in calls]
    assert starts == sorted(starts)
    assert all(call.span.start <= call.span.end for call in calls)
    metered = lane.submit("forwards", 3, 1, 2)
    assert metered.result() == 3
    assert metered.span.forwards == (3, 1, 2)
    with pytest.raises(InputError, match="that was wrong"):
        lane.submit("fail", InputError("that was wrong")).result()
    failing = lane.submit("fail", MemoryError())
    assert isinstance(failing.exception(), LaneError)
    assert str(failing.exception()) == "the test lane ran out of memory"
    assert lane.submit("echo", "still there").result() == "still there"
    lane.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_worker_that_cannot_be_made_says_why(kind):
    lane = MAKERS[kind](make_nothing)
    for _ in range(2):
        with pytest.raises(InputError, match="there is no such worker"):
            lane.submit("echo", 1).result()
    lane.close()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_call_can_be_stopped(kind):
    lane = MAKERS[kind](Echo)
    call, later = lane.submit("count", 30_000), lane.submit("echo", "next")
    while call.running():  # nothing to wait for: the stop may come at any time
        pass
    call.stop()
    assert call.result() < 30_000
    assert later.result() == "next"
    call.stop()  # too late, and without effect on what follows
    assert lane.submit("count", 5).result() == 5
    lane.close()


def test_a_process_has_its_own_cores(process):
    pid, cores, threads = process.submit("where").result()
    assert pid != os.getpid()
    assert (cores, threads) == ([CORE], 1)
    everything = tuple(sorted(os.sched_getaffinity(0)))
    process.occupy(Share(2, everything))
    assert process.submit("where").result() == (pid, list(everything), 2)


def test_a_thread_stays_on_its_core_whatever_the_program_is_bound_to(monkeypatch):
    *others, last = sorted(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_PLACES", f"{{{CORE}}}")  # as batch systems do
    lane = ProcessLane(Echo, "test", Share(1, (last,)), timeout=30, places=(last, *others))
    try:
        assert lane.submit("where").result()[1:] == ([last], 1)
        lane.occupy(Share(1 + len(others), (*others, last)))
        assert lane.submit("where").result()[1:] == ([last], 1 + len(others))
    finally:
        lane.close()


@pytest.mark.parametrize(
    ("method", "args", "how"),
    [
        ("die", (), "the draft lane died: its process was killed (out of memory?)"),
        ("die", (signal.SIGSEGV,), "the draft lane died: its process got SIGSEGV"),
        ("leave", (3,), "the draft lane died: its process ended with exit code 3"),
    ],
)
def test_a_process_that_dies_is_one_clear_error(process, method, args, how):
    pid = process.submit("where").result()[0]
    calls = [process.submit(method, *args), process.submit("echo", 1)]
    for call in calls:
        with pytest.raises(LaneError) as caught:
            call.result()
        assert str(caught.value) == how
        assert caught.value.lane == "draft"
    with pytest.raises(LaneError):
        process.submit("echo", 2).result()
    assert gone(pid)


def test_a_process_that_hangs_is_given_up():
    lane = ProcessLane(Echo, "draft", SHARE, timeout=0.3)
    pid = lane.submit("where").result()[0]  # making the worker may take longer than the timeout
    with pytest.raises(LaneError, match=r"did not answer for 0.3 s and was ended"):
        lane.submit("hang").result()
    lane.close()
    assert gone(pid)


def test_an_answer_that_cannot_be_sent_is_an_error(process):
    with pytest.raises(LaneError, match="cannot send its answer"):
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
        "from specbranch.lanes.placement import Share\n"
        "from specbranch.lanes.process import ProcessLane\n"
        "from tests.lane_workers import Echo\n"
        "lane = ProcessLane(Echo, 'draft', Share(1))\n"
        "print(lane.submit('where').result()[0], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # By name: the lane's process does not look into the folder that it is started in.
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
    error = pickle.loads(pickle.dumps(LaneError("draft", "died")))
    assert str(error) == "the draft lane died"
    assert error.lane == "draft"


class TestVirtualClock:
    """Times computed by hand: a forward of n tokens takes n seconds, a call half a second."""

    def pair(self):
        clock = VirtualClock()
        lanes = [VirtualLane(Echo, name, PROFILE, clock) for name in ("draft", "target")]
        return clock, *lanes

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
        costs = Costs({1: 1.0, 5: 3.0})
        assert [costs.seconds(n) for n in (1, 2, 3, 5, 50)] == [1.0, 1.5, 2.0, 3.0, 3.0]
        ratio = Profile.of_ratio(8, branch_cost=0.5, step=2.0)
        assert ratio.target.seconds(16) == 16.0
        assert [ratio.draft.seconds(k) for k in (1, 2, 3)] == [2.0, 3.0, 4.0]

    def test_profiles_are_files(self, tmp_path):
        file = tmp_path / "profile.json"
        profile = Profile(Costs({1: 0.5, 8: 0.75}, call=0.125), Costs({1: 0.25}))
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
        module = sys.modules["specbranch.lanes.placement"]
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
        everything = Share(cores, tuple(range(cores)))
        shares = Share(len(target), target), Share(len(draft), draft)
        placement = place(CPU, CPU)
        assert placement == Placement(*shares, everything)
        assert placement.share("target", overlap=True) == shares[0]
        assert placement.share("draft", overlap=True) == shares[1]
        assert placement.share("draft", overlap=False) == everything

    def test_a_model_on_a_gpu_needs_one_core(self, monkeypatch):
        self.machine(monkeypatch, 8)
        assert place(GPU, CPU).draft.threads == 7
        assert place(GPU, CPU).target.threads == 1
        assert place(CPU, GPU).target.threads == 7
        assert place(GPU, OTHER_GPU).draft.threads == 1

    def test_hardware_threads_of_one_core_count_once(self, monkeypatch):
        self.machine(monkeypatch, 8, siblings=2)
        assert available() == Share(4, (0, 2, 4, 6))

    def test_a_quota_gives_time_but_no_cores(self, monkeypatch):
        self.machine(monkeypatch, 64, quota=2.0)
        placement = place(CPU, CPU)
        assert placement == Placement(Share(1), Share(1), Share(2))

    def test_one_core_is_shared(self, monkeypatch):
        self.machine(monkeypatch, 1)
        assert place(CPU, CPU) == Placement(Share(1), Share(1), Share(1, (0,)))
        assert pick_lanes("auto", CPU, CPU, overlap=True) == "inline"

    def test_what_the_user_says_goes(self, monkeypatch):
        self.machine(monkeypatch, 8)
        placement = place(CPU, CPU, "0-1,4", "5")
        assert placement.target == Share(3, (0, 1, 4))
        assert placement.draft == Share(1, (5,))
        assert placement.alone == Share(4, (0, 1, 4, 5))
        # The other model gets the rest.
        assert place(CPU, CPU, "0-1").draft == Share(6, tuple(range(2, 8)))
        assert place(CPU, CPU, None, "0-1").target == Share(6, tuple(range(2, 8)))
        with pytest.raises(InputError, match=r"no core is left .* with --draft-cores"):
            place(CPU, CPU, "0-7")

    def test_a_quota_bounds_what_the_user_leaves_over(self, monkeypatch):
        self.machine(monkeypatch, 64, quota=4.0)
        placement = place(CPU, CPU, None, "0")
        assert placement.target == Share(3, tuple(range(1, 64)))
        assert placement.alone == Share(4, tuple(range(64)))

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
        assert pick_lanes("auto", CPU, CPU, overlap=True) == "process"
        assert pick_lanes("auto", CPU, CPU, overlap=False) == "inline"
        assert pick_lanes("auto", GPU, GPU, overlap=True) == "thread"
        assert pick_lanes("auto", GPU, OTHER_GPU, overlap=True) == "process"
        assert pick_lanes("auto", GPU, CPU, overlap=True) == "process"
        with pytest.raises(InputError, match="unknown lanes 'fast': use auto, process"):
            pick_lanes("fast", CPU, CPU, overlap=True)


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
