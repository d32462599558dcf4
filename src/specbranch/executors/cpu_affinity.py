"""Which cores each executor gets: decided here alone, from the machine that is found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from specbranch.errors import InputError


@dataclass(frozen=True)
class CpuAffinity:
    """A executor's share of the machine's cores.

    Attributes:
        threads: for computing.
        cores: numbers as the operating system has them; empty leaves the choice to it.
    """

    threads: int
    cores: tuple[int, ...] = ()

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if not self.cores:
            return f"{threads}, any core"
        named = ",".join(map(str, self.cores))
        return f"{threads} on core{'s' if len(self.cores) > 1 else ''} {named}"

    def take(self, bound: bool = False) -> None:
        """Give this process, all its threads included, this share and no more.

        Args:
            bound: whether each thread is on a core of its own already (see `process.bound`).
        """
        if self.cores and not bound:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), self.cores)
        torch.set_num_threads(self.threads)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give this share to the calling thread, and to those that it starts, for a while."""
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
    """Shares of a pair's executors.

    Attributes:
        target, draft: while both work at the same time.
        alone: of either while the other waits.
    """

    target: CpuAffinity
    draft: CpuAffinity
    alone: CpuAffinity

    def share(self, executor: str, overlap: bool) -> CpuAffinity:
        """Of the executor `target` or `draft`, working beside the other one or in turn with it."""
        if not overlap:
            return self.alone
        return self.target if executor == "target" else self.draft

    @property
    def draft_places(self) -> tuple[int, ...]:
        """Cores in the order in which the draft's process takes them: its own, then the others."""
        own = self.draft.cores
        return (*own, *(core for core in self.alone.cores if core not in own))


def parse_cores(given: str) -> tuple[int, ...]:
    """Core numbers from a list as `taskset` takes it: ``0-3,6``.

    Raises:
        InputError: not such a list, or cores that this process may not use.
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
    """All that this process may use: one thread for each physical core."""
    if not hasattr(os, "sched_getaffinity"):
        return CpuAffinity(torch.get_num_threads())
    cores = os.sched_getaffinity(0)
    # Two hardware threads of a core share its arithmetic units: one of them saturates those.
    physical = tuple(sorted({min(_siblings(core) & cores) for core in cores}))
    quota = _quota()
    if quota is not None and quota < len(physical):
        # A container's quota is of time, not of cores: others may be on any of them.
        return CpuAffinity(max(1, int(quota)))
    return CpuAffinity(len(physical), physical)


def place(
    target_device: torch.device,
    draft_device: torch.device,
    target_cores: str | None = None,
    draft_cores: str | None = None,
) -> AffinityPlan:
    """Divide the cores between two executors that work at the same time.

    A executor on a GPU needs one core, to launch its kernels. Of two executors on the CPU the
    draft, whose
    matrices are too small to be divided far, gets a fourth of the cores, one at least.

    Args:
        target_cores, draft_cores: lists of cores (see `parse_cores`) that override this; where
            only one is given, the other executor gets the rest.

    Raises:
        InputError: no such cores, or no core is left for the other executor.
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
        target = _share_of(parse_cores(target_cores))
    if draft_cores is not None:
        draft = _share_of(parse_cores(draft_cores))
    if target_cores is not None and draft_cores is None:
        draft = _rest(everything, target, "--draft-cores")
    elif draft_cores is not None and target_cores is None:
        target = _rest(everything, draft, "--target-cores")
    if target_cores is not None or draft_cores is not None:
        both = tuple(sorted({*target.cores, *draft.cores}))
        threads = min(len(both), target.threads + draft.threads)
        return AffinityPlan(target, draft, CpuAffinity(threads, both))
    return AffinityPlan(target, draft, everything)


def _share_of(cores: tuple[int, ...]) -> CpuAffinity:
    return CpuAffinity(len(cores), tuple(sorted(cores)))


def _rest(everything: CpuAffinity, taken: CpuAffinity, option: str) -> CpuAffinity:
    cores = everything.cores or tuple(os.sched_getaffinity(0))
    left = tuple(core for core in cores if core not in taken.cores)
    if not left:
        raise InputError(f"no core is left for the other model: give its cores with {option}")
    # A quota, which names no cores, still bounds how many work at once.
    threads = min(len(left), max(1, everything.threads - taken.threads))
    return CpuAffinity(threads, left)


def _siblings(core: int) -> set[int]:
    """Hardware threads of the same physical core, `core` included."""
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
    """Cores' worth of time that a container may use; None is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
