"""Which lanes a pair runs on, and their start."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from specbranch.errors import InputError
from specbranch.lanes.base import Lane, Worker
from specbranch.lanes.inline import InlineLane
from specbranch.lanes.placement import Placement, place
from specbranch.lanes.process import TIMEOUT, ProcessLane
from specbranch.lanes.thread import ThreadLane
from specbranch.lanes.virtual import Profile, VirtualClock, VirtualLane

LANES = ("auto", "process", "thread", "inline", "virtual")


def pick_lanes(asked: str, target: torch.device, draft: torch.device, overlap: bool) -> str:
    """What `auto` means here: the kind of lanes for a pair on these devices.

    Args:
        overlap: whether the decoding method has both lanes work at the same time.

    Raises:
        InputError: an unknown kind, or one that this machine does not have.
    """
    if asked not in LANES:
        raise InputError(f"unknown lanes '{asked}': use {', '.join(LANES)}")
    if asked == "process" and sys.platform == "win32":
        raise InputError("process lanes need Unix sockets: use thread or inline lanes on Windows")
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


def start_lanes(
    kind: str,
    makers: dict[str, Callable[[], Worker]],
    devices: dict[str, torch.device],
    placement: Placement,
    timeout: float = TIMEOUT,
    profile: Profile | None = None,
) -> dict[str, Lane]:
    """Start a lane for each of `target` and `draft` in `makers`.

    Args:
        makers: of the workers, by the name of the lane; for processes they must be picklable.
        devices: of their models.
        timeout: of process lanes, in seconds.
        profile: of virtual lanes.

    Raises:
        InputError: virtual lanes without a profile.
    """
    if kind == "virtual":
        if profile is None:
            raise InputError("virtual lanes take their times from a profile: give one")
        clock, costs = VirtualClock(), {"target": profile.target, "draft": profile.draft}
        return {n: VirtualLane(make, n, costs[n], clock) for n, make in makers.items()}
    if kind == "inline":
        return {name: InlineLane(make, name) for name, make in makers.items()}
    shares = {"target": placement.target, "draft": placement.draft}
    if kind == "thread":
        return {
            name: ThreadLane(make, name, shares[name], devices[name])
            for name, make in makers.items()
        }
    lanes: dict[str, Lane] = {}
    if "draft" in makers:  # its process starts while the target is made here
        lanes["draft"] = ProcessLane(
            makers["draft"], "draft", placement.draft, timeout, placement.draft_places
        )
    lanes["target"] = InlineLane(makers["target"], "target", placement.target)
    return lanes
