"""A text on its way through the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from specbranch.config import SpeculativeConfig
from specbranch.engine.detokenizer import Detokenizer
from specbranch.executors.base import Executor
from specbranch.logprobs import PlaceLogprobs
from specbranch.methods.base import Method
from specbranch.methods.registry import MethodSpec
from specbranch.metrics import Fates, Metrics, Round
from specbranch.models.padding import Padding
from specbranch.outputs import CompletionOutput, Piece, RequestOutput, Speculation
from specbranch.sampling.pipeline import UNCONSTRAINED, TextConstraints
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import FinishReason, TokenSequence
from specbranch.workers.drafter import Drafter


@dataclass(eq=False)
class EngineRequest:
    """A text, how it is decoded, and what it has come to.

    Attributes:
        prompt: as text; empty where it was given as token ids.
        sequence: the committed text. Its id is the request's.
        detokenizer: makes text of it.
        params: how it is sampled; the seed is set.
        spec: the decoding method that was asked for.
        config: how much to draft.
        padding: of the target's forwards.
        constraints: what the parameters come to for the text.
        metrics, rounds: of what was decoded so far.
        method: the state machine, once the text is open on the workers.
        opened: whether its prompt was handed to the workers.
        drafter: the executor of the drafter that the text is open on; None where it is on none.
        reason: why the text went on without the draft, if it did.
        error: what ended the text, if that was no end of its own.
        scored_prompt: log-probabilities of the prompt's tokens after the first, if asked for.
    """

    prompt: str
    sequence: TokenSequence
    detokenizer: Detokenizer
    params: SamplingParams
    spec: MethodSpec
    config: SpeculativeConfig
    padding: Padding
    constraints: TextConstraints = UNCONSTRAINED
    metrics: Metrics = field(default_factory=Metrics)
    rounds: list[Round] = field(default_factory=list)
    method: Method | None = None
    opened: bool = False
    drafter: Executor[Drafter] | None = None
    reason: str | None = None
    error: BaseException | None = None
    scored_prompt: list[PlaceLogprobs] | None = None

    @property
    def id(self) -> int:
        return self.sequence.id

    @property
    def drafting(self) -> bool:
        """Whether the text is open on a drafter."""
        return self.drafter is not None

    @property
    def finished(self) -> bool:
        return self.sequence.finished

    def absorb(self, done: Round) -> None:
        """Count a round."""
        self.rounds.append(done)
        self.metrics.add(done)
        if self.finished:
            last = self.sequence.tokens[-1]
            if last in self.sequence.stop_ids:
                self.detokenizer.push_stop(last)
            self.detokenizer.finish()

    def drop_method(self) -> None:
        """End the state machine. Drafted tokens whose fate is open stay in flight."""
        if self.method is not None:
            self.metrics.fates += Fates(in_flight=self.method.in_flight)
            self.method = None

    def abort(self) -> None:
        """End the text where it is."""
        if not self.finished:
            self.sequence.finish_reason = FinishReason.ABORT
            self.detokenizer.finish()

    def pieces(self) -> Iterator[Piece]:
        """The text that became final since the last call."""
        for index, text in self.detokenizer.release():
            yield Piece(text, self.sequence.tokens[index], self.sequence.origins[index])

    def output(self) -> RequestOutput:
        """What the text has come to."""
        sequence = self.sequence
        completion = CompletionOutput(
            self.detokenizer.text,
            list(sequence.tokens),
            list(sequence.origins),
            sequence.finish_reason or FinishReason.ABORT,
            self._stop_reason(),
        )
        if self.params.logprobs is not None:
            completion.logprobs = [self._decoded(place) for place in sequence.logprobs]
            pairs = zip(sequence.tokens, sequence.logprobs, strict=True)
            completion.cumulative_logprob = sum(place[token].logprob for token, place in pairs)
        fates = self.metrics.fates
        return RequestOutput(
            self.prompt,
            sequence.prompt,
            [completion],
            self.params,
            self.metrics,
            self.rounds,
            Speculation(fates.total > 0, self.reason),
            self._prompt_logprobs(),
            str(self.id),
        )

    def _stop_reason(self) -> int | str | None:
        """The stop string or stop token that ended the text."""
        last = self.sequence.tokens[-1] if self.sequence.tokens else None
        if last in self.sequence.stop_ids:
            return last if last in (self.params.stop_token_ids or ()) else None
        return self.detokenizer.stop_reason

    def _prompt_logprobs(self) -> list[PlaceLogprobs | None] | None:
        if self.params.prompt_logprobs is None or self.scored_prompt is None:
            return None
        return [None, *(self._decoded(place) for place in self.scored_prompt)]

    def _decoded(self, place: PlaceLogprobs) -> PlaceLogprobs:
        """The same with tokens as text."""
        return {
            token: replace(found, decoded_token=self.detokenizer.text_of(token))
            for token, found in place.items()
        }


@dataclass(frozen=True)
class StepOutput:
    """A text that advanced, and the round it advanced by."""

    request: EngineRequest
    round: Round
