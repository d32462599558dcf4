"""What generation gives back, in vLLM's shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specbranch.logprobs import PlaceLogprobs
from specbranch.metrics import Metrics, Round
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import FinishReason, Origin


@dataclass(frozen=True)
class Piece:
    """Some streamed text; ``print(piece, end="")`` prints it.

    Attributes:
        text: what the token adds to the text.
        token: its id.
        origin: which guess it comes from.
    """

    text: str
    token: int
    origin: Origin

    def __str__(self) -> str:
        return self.text


@dataclass
class CompletionOutput:
    """Generated text of one request; `token_ids` include the token that ended it.

    Attributes:
        origins: which guess each token comes from.
        finish_reason: why the text ended.
        stop_reason: the stop string or stop token that ended it; None for everything else, an
            end-of-text token included.
        index: which of the prompt's `n` samples it is.
        logprobs: for each token, where `logprobs` asked for them.
        cumulative_logprob: their sum over the tokens of the text; None without them.
    """

    text: str
    token_ids: list[int]
    origins: list[Origin]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    index: int = 0
    logprobs: list[PlaceLogprobs] | None = None
    cumulative_logprob: float | None = None

    def finished(self) -> bool:
        """Whether the text has ended, as all have that `generate` returns."""
        return True


@dataclass(frozen=True)
class Speculation:
    """Whether a text was drafted ahead.

    Attributes:
        drafted: whether any token was.
        reason: why it was not, or why that ended before the text did; None if it did not.
    """

    drafted: bool
    reason: str | None = None


@dataclass
class RequestOutput:
    """What `LLM.generate` returns for a prompt, in vLLM's shape, and how it was made.

    Attributes:
        prompt: as text; empty where it was given as token ids.
        outputs: the `n` samples.
        params: how they were sampled. The seed is set, and is the first sample's.
        metrics, rounds: of all samples together.
        speculation: whether the texts were drafted ahead.
        prompt_logprobs: for each token of the prompt, None for the first, where they were asked
            for.
        request_id: a number, as text.
    """

    prompt: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    params: SamplingParams
    metrics: Metrics
    rounds: list[Round]
    speculation: Speculation
    prompt_logprobs: list[PlaceLogprobs | None] | None = None
    request_id: str = ""
    finished: bool = True


def merge_samples(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """One output of a prompt from those of its samples, one or more of one completion each."""
    first, last = outputs[0], outputs[-1]
    if len(outputs) == 1:
        return first
    return replace(
        first,
        outputs=[replace(out.outputs[0], index=i) for i, out in enumerate(outputs)],
        params=replace(first.params, n=len(outputs)),
        metrics=sum((out.metrics for out in outputs[1:]), first.metrics),
        rounds=[done for out in outputs for done in out.rounds],
        speculation=Speculation(
            any(out.speculation.drafted for out in outputs), last.speculation.reason
        ),
    )
