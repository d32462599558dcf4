"""The division of cores between executors."""

import os
import sys

import pytest
import torch

from specbranch.errors import InputError
from specbranch.executors.cpu_affinity import (
    AffinityPlan,
    CpuAffinity,
    available,
    divide,
    parse_cores,
)
from specbranch.executors.start import pick_executor

CPU, GPU, OTHER_GPU = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


class TestCpuAffinity:
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
        affinity = divide(CPU, CPU)
        assert affinity == AffinityPlan(*shares, everything)
        assert affinity.of("target", overlap=True) == shares[0]
        assert affinity.of("draft", overlap=True) == shares[1]
        assert affinity.of("draft", overlap=False) == everything

    def test_a_model_on_a_gpu_needs_one_core(self, monkeypatch):
        self.machine(monkeypatch, 8)
        assert divide(GPU, CPU).draft.threads == 7
        assert divide(GPU, CPU).target.threads == 1
        assert divide(CPU, GPU).target.threads == 7
        assert divide(GPU, OTHER_GPU).draft.threads == 1

    def test_hardware_threads_of_one_core_count_once(self, monkeypatch):
        self.machine(monkeypatch, 8, siblings=2)
        assert available() == CpuAffinity(4, (0, 2, 4, 6))

    def test_a_quota_gives_time_but_no_cores(self, monkeypatch):
        self.machine(monkeypatch, 64, quota=2.0)
        affinity = divide(CPU, CPU)
        assert affinity == AffinityPlan(CpuAffinity(1), CpuAffinity(1), CpuAffinity(2))

    def test_one_core_is_shared(self, monkeypatch):
        self.machine(monkeypatch, 1)
        assert divide(CPU, CPU) == AffinityPlan(
            CpuAffinity(1), CpuAffinity(1), CpuAffinity(1, (0,))
        )
        assert pick_executor("auto", CPU, CPU, overlap=True) == "inline"

    def test_what_the_user_says_goes(self, monkeypatch):
        self.machine(monkeypatch, 8)
        affinity = divide(CPU, CPU, "0-1,4", "5")
        assert affinity.target == CpuAffinity(3, (0, 1, 4))
        assert affinity.draft == CpuAffinity(1, (5,))
        assert affinity.alone == CpuAffinity(4, (0, 1, 4, 5))
        # The other model gets the rest.
        assert divide(CPU, CPU, "0-1").draft == CpuAffinity(6, tuple(range(2, 8)))
        assert divide(CPU, CPU, None, "0-1").target == CpuAffinity(6, tuple(range(2, 8)))
        with pytest.raises(InputError, match=r"no core is left .* with --draft-cores"):
            divide(CPU, CPU, "0-7")

    def test_a_quota_bounds_what_the_user_leaves_over(self, monkeypatch):
        self.machine(monkeypatch, 64, quota=4.0)
        affinity = divide(CPU, CPU, None, "0")
        assert affinity.target == CpuAffinity(3, tuple(range(1, 64)))
        assert affinity.alone == CpuAffinity(4, tuple(range(64)))

    @pytest.mark.parametrize("given", ["", "a", "1-", "0,,1", "0;1"])
    def test_what_is_no_list_of_cores(self, given):
        with pytest.raises(InputError, match="cores must be a list such as 0-3,6"):
            parse_cores(given)

    def test_cores_that_do_not_exist(self, monkeypatch):
        self.machine(monkeypatch, 2)
        with pytest.raises(InputError, match="core 7 is not there: this process may use 0, 1"):
            parse_cores("0,7")

    def test_executors_for_devices(self, monkeypatch):
        self.machine(monkeypatch, 2)
        assert pick_executor("auto", CPU, CPU, overlap=True) == "process"
        assert pick_executor("auto", CPU, CPU, overlap=False) == "inline"
        assert pick_executor("auto", GPU, GPU, overlap=True) == "thread"
        assert pick_executor("auto", GPU, OTHER_GPU, overlap=True) == "process"
        assert pick_executor("auto", GPU, CPU, overlap=True) == "process"
        with pytest.raises(InputError, match="unknown executors 'fast': use auto, process"):
            pick_executor("fast", CPU, CPU, overlap=True)
