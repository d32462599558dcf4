"""Choice and start of the executors of a pair."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from specbranch.errors import InputError
from specbranch.executors.base import Executor, Worker
from specbranch.executors.cpu_affinity import AffinityPlan, CpuAffinity, divide
from specbranch.executors.inline import InlineExecutor
from specbranch.executors.latency_profile import Profile
from specbranch.executors.process import STARTUP_TIMEOUT, TIMEOUT, ProcessExecutor
from specbranch.executors.thread import ThreadExecutor
from specbranch.executors.virtual import VirtualClock, VirtualExecutor

EXECUTORS = ("auto", "process", "thread", "inline", "virtual")

V = TypeVar("V", bound=Worker)
D = TypeVar("D", bound=Worker)


def pick_executor(
    asked: str, target_device: torch.device, draft_device: torch.device, overlap: bool
) -> str:
    """Return the kind of executors for a pair: the one asked for, or what `auto` means here.

    Args:
        asked: one of `EXECUTORS`.
        target_device, draft_device: of the two models.
        overlap: whether the decoding method has both executors work at the same time.

    Raises:
        InputError: the kind is unknown, or this operating system does not support it.
    """
    if asked not in EXECUTORS:
        raise InputError(f"unknown executors '{asked}': use {', '.join(EXECUTORS)}")
    if asked == "process" and sys.platform == "win32":
        raise InputError(
            "process executors need Unix sockets: use thread or inline executors on Windows"
        )
    if asked != "auto":
        return asked
    if not overlap:
        return "inline"
    same_device = target_device == draft_device
    if same_device and target_device.type != "cpu":
        return "thread"
    if sys.platform == "win32":
        return "inline" if same_device else "thread"
    one_core = same_device and divide(target_device, draft_device).alone.threads == 1
    return "inline" if one_core else "process"


def start_executors(
    kind: str,
    make_verifier: Callable[[], V],
    make_drafter: Callable[[], D] | None,
    devices: dict[str, torch.device],
    affinity: AffinityPlan,
    timeout: float = TIMEOUT,
    profile: Profile | None = None,
    startup_timeout: float = STARTUP_TIMEOUT,
) -> tuple[Executor[V], Executor[D] | None]:
    """Start the executor of the target, and that of the draft if there is one.

    Args:
        kind: one of `EXECUTORS` except `auto`. Of `process`, only the draft gets a process.
        make_verifier, make_drafter: make the workers. For `process`, `pickle` must be able to
            send `make_drafter`.
        devices: of the models, by role: `target` and `draft`.
        affinity: threads and cores of the executors.
        timeout: of a process executor, in seconds.
        profile: of virtual executors.
        startup_timeout: of a process executor, in seconds.

    Raises:
        InputError: virtual executors without a profile.
    """
    clock = VirtualClock()
    drafter: Executor[D] | None = None
    if make_drafter is not None:  # first, because its process starts while the target is made here
        drafter = start_drafter(
            kind, make_drafter, devices["draft"], affinity, timeout, profile, clock, startup_timeout
        )
    try:
        verifier: Executor[V]
        if kind == "virtual":
            latency = _known(profile).target
            verifier = VirtualExecutor(make_verifier, "target", latency, clock)
        elif kind == "thread":
            verifier = ThreadExecutor(make_verifier, "target", affinity.target, devices["target"])
        else:
            verifier = InlineExecutor(make_verifier, "target", _inline_cpus(kind, affinity))
    except BaseException:  # an interrupt while the target is made
        if drafter is not None:
            drafter.close()
        raise
    return verifier, drafter


def start_drafter(
    kind: str,
    make_drafter: Callable[[], D],
    device: torch.device,
    affinity: AffinityPlan,
    timeout: float = TIMEOUT,
    profile: Profile | None = None,
    clock: VirtualClock | None = None,
    startup_timeout: float = STARTUP_TIMEOUT,
) -> Executor[D]:
    """Start the executor of the draft, at first or in place of one that died.

    Args:
        kind, affinity, timeout, profile, startup_timeout: see `start_executors`.
        make_drafter: makes the worker.
        device: of the draft.
        clock: of virtual executors: that of the target's executor.

    Raises:
        InputError: a virtual executor without a profile.
    """
    if kind == "virtual":
        return VirtualExecutor(
            make_drafter, "draft", _known(profile).draft, clock or VirtualClock()
        )
    if kind == "thread":
        return ThreadExecutor(make_drafter, "draft", affinity.draft, device)
    if kind == "inline":
        return InlineExecutor(make_drafter, "draft")
    return ProcessExecutor(
        make_drafter, "draft", affinity.draft, timeout, affinity.draft_places, startup_timeout
    )


def _inline_cpus(kind: str, affinity: AffinityPlan) -> CpuAffinity | None:
    """Return the target's affinity beside a draft's process; alone it has what the caller has."""
    return affinity.target if kind == "process" else None


def _known(profile: Profile | None) -> Profile:
    if profile is None:
        raise InputError("virtual executors take their times from a profile: give one")
    return profile
