"""The main program of the drafter's process."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable

from specbranch.errors import SpecBranchError
from specbranch.executors.channel import Channel, encode
from specbranch.executors.cpu_affinity import CpuAffinity, available, parse_cores
from specbranch.integrations.vllm.drafter_loop import DrafterLoop
from specbranch.integrations.vllm.messages import PROTOCOL, Failed, News, Ready, Start
from specbranch.models.info import ModelInfo
from specbranch.models.loader import ModelSpec, load_tokenizer
from specbranch.models.vocabularies import check_vocabularies
from specbranch.openmp import forget_binding
from specbranch.workers.drafter import Drafter
from specbranch.workers.factory import make_drafter


def serve(descriptor: int) -> None:
    """Load the draft and run its loop, until the other end of the socket is closed.

    Args:
        descriptor: of the socket.
    """
    forget_binding()
    channel = Channel(descriptor)
    try:
        _run(channel, channel.receive(), _load)
    except (EOFError, OSError, pickle.UnpicklingError):  # vLLM closed the drafter, or has ended
        os._exit(0)  # at once: nothing needs to be cleaned up
    except SpecBranchError as error:
        _fail(channel, Failed("input", str(error)))
    except MemoryError:
        _fail(channel, Failed("error", "ran out of memory"))
    except Exception as error:
        said = str(error).strip().splitlines()
        _fail(channel, Failed("error", f"{type(error).__name__}: {said[0] if said else ''}"))


def _run(channel: Channel, start: Start, load: Callable[[Start], Drafter]) -> None:
    if start.protocol != PROTOCOL:
        raise SpecBranchError(
            f"the drafter's interpreter has another version of specbranch (messages {PROTOCOL}, "
            f"vLLM's side {start.protocol}): install the same one in both"
        )
    drafter = load(start)

    def send(news: News) -> None:
        channel.send(encode(news))

    info: ModelInfo = drafter.describe()
    loop = DrafterLoop(drafter, start, info.positions, send)
    send(Ready(f"{info.name}, {info.how}"))
    while True:
        waits = not loop.busy
        while waits or channel.poll():
            loop.take(channel.receive())
            waits = False
        loop.work()


def _load(start: Start) -> Drafter:
    _settle_on(start.cores)
    if start.target:
        names = start.target, start.draft
        check_vocabularies(load_tokenizer(start.target), load_tokenizer(start.draft), names)
    spec = ModelSpec(
        start.draft,
        dtype=start.dtype,
        device=start.device,
        eager=start.eager,
        quantization=start.quantization,
        drafts=True,
    )
    return make_drafter(spec)


def _settle_on(cores: str | None) -> None:
    """Leave the cores of vLLM's worker, whose restriction this process has inherited."""
    if hasattr(os, "sched_setaffinity"):
        everywhere = range(os.cpu_count() or 1)
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, everywhere)
    if cores is None:
        everything = available()
        CpuAffinity(max(1, everything.threads // 4)).apply()
    else:
        named = parse_cores(cores)
        CpuAffinity(len(named), named).apply()


def _fail(channel: Channel, failed: Failed) -> None:
    print(f"specbranch: the drafter ends: {failed.why}", file=sys.stderr)
    with contextlib.suppress(OSError):
        channel.send(encode(failed))
    sys.exit(1)
