"""What generation gives back, in vLLM's shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from specbranch.engine.detokenizer import Detokenizer
from specbranch.metrics import Metrics, Round
from specbranch.sampling_params import SamplingParams
from specbranch.sequence import FinishReason, Origin, Sequence


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


@dataclass
class RequestOutput:
    """What `LLM.generate` returns for a prompt, in vLLM's shape, and how it was made."""

    prompt: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    params: SamplingParams
    metrics: Metrics
    rounds: list[Round]


@dataclass
class Request:
    """A generation under way: what the decoder writes to and the reader reads from."""

    sequence: Sequence
    stream: Detokenizer
    params: SamplingParams
    metrics: Metrics = field(default_factory=Metrics)
    rounds: list[Round] = field(default_factory=list)

    def pieces(self, rounds: Iterator[Round]) -> Iterator[Piece]:
        """The text of its rounds, as soon as it is final."""
        for _ in rounds:
            for index, text in self.stream.release():
                yield Piece(text, self.sequence.tokens[index], self.sequence.origins[index])

    def output(self, prompt: str = "") -> RequestOutput:
        """What it has come to."""
        sequence = self.sequence
        reason = sequence.finish_reason or FinishReason.ABORT
        completion = CompletionOutput(
            self.stream.text, list(sequence.tokens), list(sequence.origins), reason
        )
        return RequestOutput(
            prompt, sequence.prompt, [completion], self.params, self.metrics, self.rounds
        )
