"""What generation gives back, in vLLM's shape."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Generated text of one request; `token_ids` include the token that ended it."""

    text: str
    token_ids: list[int]
    origins: list[Origin]
    finish_reason: FinishReason


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
    """What `LLM.generate` returns for a prompt, in vLLM's shape, and how it was made."""

    prompt: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    params: SamplingParams
    metrics: Metrics
    rounds: list[Round]
    speculation: Speculation
