"""`LLM`: load a pair, generate, stream."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbranch.decoders import DECODERS, DecodingOptions, Lanes
from specbranch.errors import InputError
from specbranch.lanes.inline import InlineLane
from specbranch.metrics import Metrics, Round
from specbranch.models.loading import Loaded, check_vocabularies, load
from specbranch.models.runner import CausalRunner
from specbranch.models.selfcheck import check_runner
from specbranch.sampling import SamplingParams
from specbranch.sequence import FinishReason, Origin, Sequence
from specbranch.text import TextStream
from specbranch.workers.draft import DraftWorker
from specbranch.workers.messages import Opening
from specbranch.workers.target import TargetWorker

FIXED_WIDTH = 16  # holds a chain of 15 tokens; forwards of up to 16 cost little more than of one
Prompt = str | ListLike[int]


def _check_method(method: str | None, has_draft: bool) -> None:
    if method is None:
        return
    if method not in DECODERS:
        raise InputError(f"unknown method '{method}': use {', '.join(DECODERS)}")
    if not has_draft and method != "autoregressive":
        raise InputError(f"the method '{method}' needs a draft model: give one")


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
    stream: TextStream
    params: SamplingParams
    metrics: Metrics = field(default_factory=Metrics)
    rounds: list[Round] = field(default_factory=list)


class LLM:
    """A target and a draft, ready to generate.

    Args:
        target: name of a bundled model, folder, or name on the Hugging Face hub.
        draft: likewise; None leaves only the method `autoregressive`.
        method: default decoding method: `specbranch`, `speculative` or `autoregressive`.
        gamma: γ, most tokens drafted ahead in one round.
        epsilon: ε, draft confidence below which a position is uncertain.
        k_max: most branches at a branch point.
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        device: where both models run; `target_device` and `draft_device` override it.
        sharded: spread the target over all GPUs (`device_map="auto"`).
        width: tokens of every target forward: with a number, all methods give bit-identical
            logits (see `CausalRunner`); None runs forwards at their natural width, where rounding
            may let the text of two methods part at near-ties.
        max_model_len: most tokens of a text, prompt included; the models' own limit by default.

    Raises:
        InputError: a model is not there or broken, or the vocabularies differ.
        UnsupportedModelError: a model cannot be decoded losslessly.
    """

    def __init__(
        self,
        target: str = "target",
        draft: str | None = "draft",
        *,
        method: str | None = None,
        gamma: int = DecodingOptions.gamma,
        epsilon: float = DecodingOptions.epsilon,
        k_max: int = DecodingOptions.k_max,
        dtype: str = "auto",
        device: str = "auto",
        target_device: str | None = None,
        draft_device: str | None = None,
        sharded: bool = False,
        width: int | None = FIXED_WIDTH,
        max_model_len: int | None = None,
    ) -> None:
        options = DecodingOptions(gamma, epsilon, k_max)
        _check_method(method, draft is not None)
        loaded = load(target, dtype, target_device or device, sharded)
        drafting = load(draft, dtype, draft_device or device) if draft is not None else None
        if drafting:
            check_vocabularies(loaded, drafting)
        self._start(loaded, drafting, options, method, width, max_model_len)

    @classmethod
    def from_models(
        cls,
        target: PreTrainedModel,
        draft: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        method: str | None = None,
        options: DecodingOptions | None = None,
        width: int | None = FIXED_WIDTH,
        max_model_len: int | None = None,
    ) -> LLM:
        """An `LLM` of models already in memory; without a tokenizer it takes and gives token ids.

        The caller vouches that both models share their vocabulary.
        """
        llm = cls.__new__(cls)
        loaded = Loaded("target", target, tokenizer)
        drafting = Loaded("draft", draft, tokenizer) if draft is not None else None
        llm._start(loaded, drafting, options or DecodingOptions(), method, width, max_model_len)
        return llm

    def _start(
        self,
        target: Loaded,
        draft: Loaded | None,
        options: DecodingOptions,
        method: str | None,
        width: int | None,
        max_model_len: int | None,
    ) -> None:
        self.target, self.draft, self.options = target, draft, options
        self.tokenizer = target.tokenizer
        self.method = method or ("specbranch" if draft else "autoregressive")
        _check_method(self.method, draft is not None)
        if width is not None and width < 1:
            raise InputError(f"width must be 1 or more, or None, not {width!r}")
        self.width = width
        runner = CausalRunner(target.model, width)
        check_runner(runner, target.name)
        limits = [runner.positions]
        drafting = None
        if draft:
            draft_runner = CausalRunner(draft.model)
            check_runner(draft_runner, draft.name)
            limits.append(draft_runner.positions)
            worker = DraftWorker(
                draft_runner, runner.vocabulary, draft_runner.vocabulary, options.branch_tokens
            )
            drafting = InlineLane(worker)
        if max_model_len is not None:
            if not 2 <= max_model_len <= min(limits):
                raise InputError(
                    f"max_model_len must be between 2 and {min(limits)}, not {max_model_len}"
                )
            limits.append(max_model_len)
        self.max_model_len = min(limits)
        self._lanes = Lanes(InlineLane(TargetWorker(runner)), drafting)
        self._ids = itertools.count()

    def plain(self) -> LLM:
        """The same target without a draft at its natural width: plain decoding at its fastest."""
        return LLM.from_models(
            self.target.model, None, self.tokenizer, width=None, max_model_len=self.max_model_len
        )

    def generate(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Generate for each prompt (text or token ids), one after another.

        Args:
            progress: show a bar over the prompts.

        Raises:
            InputError: a prompt is empty or leaves no room in the context, or an unknown method.
        """
        outputs = []
        encoded = [self._encode(prompt) for prompt in self._as_list(prompts)]
        for text, ids in tqdm(encoded, desc="prompts", disable=not progress):
            request = self._request(ids, params)
            for _ in self._rounds(request, method):
                pass
            outputs.append(self.output(request, text))
        return outputs

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, method: str | None = None
    ) -> Iterator[Piece]:
        """Generate for one prompt, yielding text as soon as it is final.

        Raises:
            InputError: as `generate`, before anything is yielded.
        """
        return self.stream_request(self.request(prompt, params), method=method)

    def request(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """A request for `stream_request`, whose metrics can be read while and after it runs."""
        return self._request(self._encode(prompt)[1], params)

    def stream_request(self, request: Request, *, method: str | None = None) -> Iterator[Piece]:
        """Run a request, yielding text as soon as it is final."""
        rounds = self._rounds(request, method)
        return self._pieces(request, rounds)

    def output(self, request: Request, prompt: str = "") -> RequestOutput:
        """What a request has come to."""
        sequence = request.sequence
        reason = sequence.finish_reason or FinishReason.ABORT
        completion = CompletionOutput(
            request.stream.text, list(sequence.tokens), list(sequence.origins), reason
        )
        return RequestOutput(
            prompt, sequence.prompt, [completion], request.params, request.metrics, request.rounds
        )

    def close(self) -> None:
        """Release both lanes."""
        for lane in self._lanes.all():
            lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _pieces(self, request: Request, rounds: Iterator[Round]) -> Iterator[Piece]:
        sequence = request.sequence
        for _ in rounds:
            for index, text in request.stream.release():
                yield Piece(text, sequence.tokens[index], sequence.origins[index])

    @staticmethod
    def _as_list(prompts: Prompt | ListLike[Prompt]) -> list[Any]:
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            return [prompts]
        return list(prompts)

    def _encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty: give some text to continue")
            if self.tokenizer is None:
                raise InputError("this LLM has no tokenizer: give the prompt as token ids")
            text, ids = prompt, self.tokenizer(prompt)["input_ids"]
        else:
            text, ids = "", list(prompt)
        vocabulary: int = self.target.model.config.get_text_config().vocab_size
        if not ids:
            raise InputError("the prompt has no tokens: give some text to continue")
        if not all(0 <= token < vocabulary for token in ids):
            raise InputError(f"prompt token ids must be between 0 and {vocabulary - 1}")
        if len(ids) >= self.max_model_len:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_model_len}: "
                f"shorten it to {self.max_model_len - 1} tokens or fewer"
            )
        return text, ids

    def _request(self, ids: list[int], params: SamplingParams | None) -> Request:
        params = params or SamplingParams()
        if params.seed is None and not params.greedy:
            params = replace(params, seed=secrets.randbits(63))
        if params.stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer: use stop_token_ids")
        stream = TextStream(self.tokenizer, ids, params.stop)
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self._end_of_text()
        sequence = Sequence(
            next(self._ids),
            ids,
            min(params.max_tokens, self.max_model_len - len(ids)),
            frozenset(stop_ids),
            ends_text=lambda tokens: self.tokenizer is not None and stream.push(tokens[-1]),
        )
        return Request(sequence, stream, params)

    def _end_of_text(self) -> set[int]:
        config = self.target.model.generation_config
        eos = config.eos_token_id if config is not None else None
        if eos is None:
            return set()
        return set(eos) if isinstance(eos, list) else {eos}

    def _rounds(self, request: Request, method: str | None) -> Iterator[Round]:
        _check_method(method, self.draft is not None)
        return self._decode(request, method or self.method)

    def _decode(self, request: Request, method: str) -> Iterator[Round]:
        """The decoder's rounds, timed and counted; closes the sequence however it ends."""
        sequence = request.sequence
        lanes = self._lanes if method != "autoregressive" else Lanes(self._lanes.target)
        capacity = len(sequence.prompt) + sequence.max_tokens
        opening = Opening(sequence.prompt, request.params, capacity, sequence.stop_ids)
        started = time.perf_counter()
        opened = [(lane, lane.submit("open", sequence.id, opening)) for lane in lanes.all()]
        try:
            for _, future in opened:
                future.result()
            before = time.perf_counter()
            for done in DECODERS[method](sequence, lanes, self.options):
                now = time.perf_counter()
                done.seconds, before = now - before, now
                request.rounds.append(done)
                request.metrics.add(done)
                request.metrics.seconds = now - started
                if sequence.finished:
                    request.stream.finish()
                yield done
                before += time.perf_counter() - now  # the reader's time is not the round's
                started += time.perf_counter() - now
        finally:
            for lane, future in opened:
                if future.exception() is None:
                    lane.submit("close", sequence.id).result()
