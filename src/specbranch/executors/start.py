"""Which executors a pair runs on, and their start."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from specbranch.errors import InputError
from specbranch.executors.base import Executor, Worker
from specbranch.executors.cpu_affinity import AffinityPlan, place
from specbranch.executors.inline import InlineExecutor
from specbranch.executors.process import TIMEOUT, ProcessExecutor
from specbranch.executors.thread import ThreadExecutor
from specbranch.executors.virtual import Profile, VirtualClock, VirtualExecutor

EXECUTORS = ("auto", "process", "thread", "inline", "virtual")


def pick_executor(asked: str, target: torch.device, draft: torch.device, overlap: bool) -> str:
    """What `auto` means here: the kind of executors for a pair on these devices.

    Args:
        overlap: whether the decoding method has both executors work at the same time.

    Raises:
        InputError: an unknown kind, or one that this machine does not have.
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
    if target == draft and target.type != "cpu":
        return "thread"
    if sys.platform == "win32":
        return "inline" if target == draft else "thread"
    one_core = target == draft and place(target, draft).alone.threads == 1
    return "inline" if one_core else "process"


def start_executors(
    kind: str,
    makers: dict[str, Callable[[], Worker]],
    devices: dict[str, torch.device],
    affinity: AffinityPlan,
    timeout: float = TIMEOUT,
    profile: Profile | None = None,
) -> dict[str, Executor]:
    """Start a executor for each of `target` and `draft` in `makers`.

    Args:
        makers: of the workers, by the name of the executor; for processes they must be picklable.
        devices: of their models.
        timeout: of process executors, in seconds.
        profile: of virtual executors.

    Raises:
        InputError: virtual executors without a profile.
    """
    if kind == "virtual":
        if profile is None:
            raise InputError("virtual executors take their times from a profile: give one")
        clock, costs = VirtualClock(), {"target": profile.target, "draft": profile.draft}
        return {n: VirtualExecutor(make, n, costs[n], clock) for n, make in makers.items()}
    if kind == "inline":
        return {name: InlineExecutor(make, name) for name, make in makers.items()}
    shares = {"target": affinity.target, "draft": affinity.draft}
    if kind == "thread":
        return {
            name: ThreadExecutor(make, name, shares[name], devices[name])
            for name, make in makers.items()
        }
    executors: dict[str, Executor] = {}
    if "draft" in makers:  # its process starts while the target is made here
        executors["draft"] = ProcessExecutor(
            makers["draft"], "draft", affinity.draft, timeout, affinity.draft_places
        )
    executors["target"] = InlineExecutor(makers["target"], "target", affinity.target)
    return executors
