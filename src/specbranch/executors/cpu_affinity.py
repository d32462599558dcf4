"""CPU affinity: how the cores of this machine are divided between the executors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from specbranch.errors import InputError


@dataclass(frozen=True)
class CpuAffinity:
    """The computing threads of an executor, and the cores they may run on.

    Attributes:
        threads: number of computing threads.
        cores: numbers of the operating system; empty leaves the choice to it.
    """

    threads: int
    cores: tuple[int, ...] = ()

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if not self.cores:
            return f"{threads}, any core"
        named = ",".join(map(str, self.cores))
        return f"{threads} on core{'s' if len(self.cores) > 1 else ''} {named}"

    def apply(self, bound: bool = False) -> None:
        """Restrict this process, with all its threads, to these cores and this many threads.

        Args:
            bound: whether OpenMP has bound each thread to a core of its own (see
                `openmp.child_environment`); the cores are then left as they are.
        """
        if self.cores and not bound:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), self.cores)
        torch.set_num_threads(self.threads)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Restrict the calling thread, and threads that it starts, for the duration of a block."""
        threads = torch.get_num_threads()
        cores = os.sched_getaffinity(0) if self.cores else set()
        try:
            torch.set_num_threads(self.threads)
            if self.cores:
                os.sched_setaffinity(0, self.cores)
            yield
        finally:
            torch.set_num_threads(threads)
            if self.cores:
                os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class AffinityPlan:
    """CPU affinities of the executors of a pair.

    Attributes:
        target, draft: while both work at the same time.
        alone: of either one while the other waits.
    """

    target: CpuAffinity
    draft: CpuAffinity
    alone: CpuAffinity

    def of(self, role: Literal["target", "draft"], overlap: bool) -> CpuAffinity:
        """Return the affinity of an executor.

        Args:
            role: which executor.
            overlap: whether the other executor works at the same time.
        """
        if not overlap:
            return self.alone
        return self.target if role == "target" else self.draft

    @property
    def draft_places(self) -> tuple[int, ...]:
        """Cores for the threads of the draft's process in order: its own, then the others."""
        own = self.draft.cores
        return (*own, *(core for core in self.alone.cores if core not in own))


def parse_cores(given: str) -> tuple[int, ...]:
    """Parse a list of core numbers in the syntax of `taskset`, such as ``0-3,6``.

    Raises:
        InputError: the syntax is wrong, or this process may not use one of the cores.
    """
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", given):
        raise InputError(f"cores must be a list such as 0-3,6, not '{given}'")
    cores = _parse_list(given)
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this operating system does not let a program choose its cores")
    if lacking := set(cores) - os.sched_getaffinity(0):
        named = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise InputError(f"core {min(lacking)} is not there: this process may use {named}")
    return cores


def available() -> CpuAffinity:
    """Return all that this process may use: one thread for each physical core."""
    if not hasattr(os, "sched_getaffinity"):
        return CpuAffinity(torch.get_num_threads())
    cores = os.sched_getaffinity(0)
    # Two hardware threads of a core share its arithmetic units, and one thread saturates them.
    physical = tuple(sorted({min(_siblings(core) & cores) for core in cores}))
    quota = _quota()
    if quota is not None and quota < len(physical):
        # A container's quota limits time, not cores: other programs may run on any of them.
        return CpuAffinity(max(1, int(quota)))
    return CpuAffinity(len(physical), physical)


def divide(
    target_device: torch.device,
    draft_device: torch.device,
    target_cores: str | None = None,
    draft_cores: str | None = None,
) -> AffinityPlan:
    """Divide the cores between two executors that work at the same time.

    An executor on a GPU needs one core, to launch its kernels. Of two executors on the CPU, the
    draft gets a quarter of the cores, at least one: its matrices are too small for more threads.

    Args:
        target_device, draft_device: of the two models.
        target_cores, draft_cores: lists of cores (see `parse_cores`) that override this rule. If
            only one is given, the other executor gets the remaining cores.

    Raises:
        InputError: a list is wrong, or no core remains for the other executor.
    """
    everything = available()
    count = everything.threads
    if draft_device.type != "cpu":
        for_draft = 1
    elif target_device.type != "cpu":
        for_draft = max(1, count - 1)
    else:
        for_draft = max(1, count // 4)
    for_target = max(1, count - for_draft) if target_device.type == "cpu" else 1
    cores = everything.cores
    if len(cores) >= 2:
        target = CpuAffinity(for_target, cores[:for_target])
        draft = CpuAffinity(for_draft, cores[-for_draft:])
    else:
        target, draft = CpuAffinity(for_target), CpuAffinity(for_draft)
    if target_cores is not None:
        target = _affinity_to(parse_cores(target_cores))
    if draft_cores is not None:
        draft = _affinity_to(parse_cores(draft_cores))
    if target_cores is not None and draft_cores is None:
        draft = _rest(everything, target, "--draft-cores")
    elif draft_cores is not None and target_cores is None:
        target = _rest(everything, draft, "--target-cores")
    if target_cores is not None or draft_cores is not None:
        both = tuple(sorted({*target.cores, *draft.cores}))
        threads = min(len(both), target.threads + draft.threads)
        return AffinityPlan(target, draft, CpuAffinity(threads, both))
    return AffinityPlan(target, draft, everything)


def _affinity_to(cores: tuple[int, ...]) -> CpuAffinity:
    return CpuAffinity(len(cores), tuple(sorted(cores)))


def _rest(everything: CpuAffinity, taken: CpuAffinity, option: str) -> CpuAffinity:
    cores = everything.cores or tuple(os.sched_getaffinity(0))
    left = tuple(core for core in cores if core not in taken.cores)
    if not left:
        raise InputError(f"no core is left for the other model: give its cores with {option}")
    # A quota names no cores, but it still bounds how many of them work at once.
    threads = min(len(left), max(1, everything.threads - taken.threads))
    return CpuAffinity(threads, left)


def _siblings(core: int) -> set[int]:
    """Return the hardware threads of the same physical core, `core` included."""
    file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        return set(_parse_list(file.read_text().strip()))
    except (OSError, ValueError):
        return {core}


def _parse_list(given: str) -> tuple[int, ...]:
    cores: set[int] = set()
    for part in given.split(","):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return tuple(sorted(cores))


def _quota() -> float | None:
    """Return how many cores' worth of time a container may use; None means no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
