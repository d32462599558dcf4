"""`LLM`: load a pair, generate, stream."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListLike
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Literal, Self

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbranch.decoders import (
    DECODERS,
    DRAFTLESS,
    OVERLAPPING,
    Decoder,
    DecodingOptions,
    Lanes,
)
from specbranch.decoders.autoregressive import autoregressive
from specbranch.decoders.specbranch import specbranch
from specbranch.errors import InputError, LaneError
from specbranch.hrad.predictor import HRAD
from specbranch.lanes.base import Lane, Worker
from specbranch.lanes.placement import place
from specbranch.lanes.process import TIMEOUT
from specbranch.lanes.start import pick_lanes, start_lanes
from specbranch.lanes.virtual import PLACEMENT, Profile
from specbranch.metrics import Round
from specbranch.models.loading import ModelSpec, check_vocabularies, load_tokenizer, named_device
from specbranch.models.runner import CausalRunner, ModelFacts
from specbranch.models.selfcheck import check_runner, invariant_from
from specbranch.models.width import NATURAL, AskedWidth, Width
from specbranch.options import Branching
from specbranch.outputs import CompletionOutput, Piece, Request, RequestOutput
from specbranch.sampling import SamplingParams
from specbranch.sequence import FinishReason, Sequence
from specbranch.text import TextStream
from specbranch.workers.draft import DraftWorker
from specbranch.workers.make import make_draft, make_target
from specbranch.workers.messages import Opening
from specbranch.workers.target import TargetWorker
from specbranch.zoo import PREDICTORS

logger = logging.getLogger("specbranch")

Prompt = str | ListLike[int]


def _check_method(method: str | None, has_draft: bool) -> None:
    if method is None:
        return
    if method not in DECODERS:
        raise InputError(f"unknown method '{method}': use {', '.join(DECODERS)}")
    if not has_draft and method not in DRAFTLESS:
        raise InputError(f"the method '{method}' needs a draft model: give one")


def _predictor(
    asked: str | Path | None, target: str, draft: str | None, gamma: int | str
) -> Path | Literal["online"] | None:
    """The file of H-RAD for a pair."""
    if asked is None or draft is None:
        return None
    if asked == "online":
        return "online"
    if asked != "auto":
        return Path(asked)
    bundled = PREDICTORS.get(draft) if target == "target" else None
    # One for another γ would be refused if it were asked for; unasked, it is left out.
    fits = bundled and (gamma == "auto" or HRAD.load(bundled).gamma == gamma)
    return bundled if fits else None


class LLM:
    """A target and a draft, ready to generate.

    Args:
        target: name of a bundled model, folder, or name on the Hugging Face hub.
        draft: likewise; None leaves only the methods of the target alone.
        method: default decoding method: `specbranch`, `pearl`, `speculative`, `adaedl`; or, of the
            target alone, `lookup`, `lookahead` or `autoregressive`.
        gamma: γ, most tokens drafted ahead in one round; `auto` follows the lanes' speed.
        epsilon: ε, a token's chance of acceptance below which a position is uncertain; `auto`
            weighs the chance against time instead.
        k_max: most branches in one round; `auto` likewise.
        branching: for the likeliest `outcomes` anywhere on the chain; or at its end, one `point`;
            or for the best ones of every place, `even`.
        speculate: `always`, or `auto`: plain decoding where drafting would slow it down.
        hrad: the predictor: a file that `specbranch hrad train` wrote, None, `online`, which learns
            from the running text, or `auto`: the bundled pair has one, for its γ, and others have
            none.
        retrieval: draft a text that repeats itself from itself, too.
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        device: where both models run; `target_device` and `draft_device` override it.
        sharded: spread the target over all GPUs (`device_map="auto"`).
        lanes: where the models run: `process` (each in its own, on its own cores or GPU), `thread`
            (each on its own CUDA stream of one GPU), `inline` (in turn), `virtual` (in turn, with
            the times of `profile`), or `auto`: the best for the devices and the method.
        target_cores, draft_cores: of process lanes, as ``0-3,6``; by default divided between them.
        lane_timeout: seconds after which a process lane that does not answer is given up.
        profile: how fast the virtual lanes are.
        width: tokens of a target forward. With `auto` and with a number all methods give
            bit-identical logits: `auto` verifies a chain as it is where this machine's kernels are
            batch-invariant, and else pads every forward to 16 tokens; a number pads to that. None
            runs forwards as they come, where rounding may let the text of two methods part at
            near-ties.
        max_model_len: most tokens of a text, prompt included; the models' own limit by default.
        enforce_eager: run the models as `transformers` does. By default their forwards are compiled
            on a CPU, once, which takes up to a minute, where there is a C++ compiler and the model
            is small enough to gain by it. ``SPECBRANCH_ENFORCE_EAGER=1`` does the same.

    Attributes:
        target, draft: what the models are.
        lanes: the kind of lanes in use.
        placement: their shares of the cores.
        width: of the target's forwards.

    Raises:
        InputError: a model is not there or broken, or the vocabularies differ.
        UnsupportedModelError: a model cannot be decoded losslessly.
        LaneError: a lane died while its model was loaded.
    """

    target: ModelFacts
    draft: ModelFacts | None

    def __init__(
        self,
        target: str = "target",
        draft: str | None = "draft",
        *,
        method: str | None = None,
        gamma: int | Literal["auto"] = DecodingOptions.gamma,
        epsilon: float | Literal["auto"] = DecodingOptions.epsilon,
        k_max: int | Literal["auto"] = DecodingOptions.k_max,
        branching: Branching = DecodingOptions.branching,
        speculate: Literal["auto", "always"] = DecodingOptions.speculate,
        hrad: str | Path | None = "auto",
        retrieval: bool = DecodingOptions.retrieval,
        dtype: str = "auto",
        device: str = "auto",
        target_device: str | None = None,
        draft_device: str | None = None,
        sharded: bool = False,
        lanes: str = "auto",
        target_cores: str | None = None,
        draft_cores: str | None = None,
        lane_timeout: float = TIMEOUT,
        profile: Profile | None = None,
        width: AskedWidth = "auto",
        max_model_len: int | None = None,
        enforce_eager: bool = False,
    ) -> None:
        options = DecodingOptions(gamma, epsilon, k_max, branching, speculate, retrieval=retrieval)
        self._configure(options, method, width, draft is not None)
        if lane_timeout <= 0:
            raise InputError(f"lane_timeout must be more than 0 seconds, not {lane_timeout:g}")
        self.tokenizer = load_tokenizer(target)
        eager = enforce_eager or os.environ.get("SPECBRANCH_ENFORCE_EAGER", "0") != "0"
        specs = {"target": ModelSpec(target, dtype, target_device or device, sharded, width, eager)}
        predictor = _predictor(hrad, target, draft, gamma)
        makers: dict[str, Callable[[], Worker]] = {
            "target": partial(make_target, specs["target"], predictor)
        }
        if draft is not None:
            check_vocabularies(self.tokenizer, load_tokenizer(draft), (target, draft))
            specs["draft"] = ModelSpec(draft, dtype, draft_device or device, eager=eager)
            makers["draft"] = partial(make_draft, specs["draft"])
        devices = {lane: named_device(spec.device) for lane, spec in specs.items()}
        devices.setdefault("draft", devices["target"])
        overlap = draft is not None and self.method in OVERLAPPING
        self.lanes = pick_lanes(lanes, devices["target"], devices["draft"], overlap)
        if self.lanes != "process" and (target_cores or draft_cores):
            raise InputError(
                f"only process lanes have cores of their own, and these are {self.lanes}: "
                "use lanes=process"
            )
        self.placement = (
            PLACEMENT
            if self.lanes == "virtual"
            else place(devices["target"], devices["draft"], target_cores, draft_cores)
        )
        self._start(makers, devices, max_model_len, width, lane_timeout, profile, predictor)

    @classmethod
    def from_models(
        cls,
        target: PreTrainedModel,
        draft: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        method: str | None = None,
        options: DecodingOptions | None = None,
        lanes: str = "inline",
        width: AskedWidth = "auto",
        max_model_len: int | None = None,
        profile: Profile | None = None,
    ) -> LLM:
        """An `LLM` of models already in memory; without a tokenizer it takes and gives token ids.

        The caller vouches that both models share their vocabulary. Process lanes, whose models
        are loaded where they run, are for models with names.
        """
        if lanes == "process":
            raise InputError("process lanes load their models by name: use LLM(target=…, draft=…)")
        llm = cls.__new__(cls)
        llm._configure(options or DecodingOptions(), method, width, draft is not None)
        llm.tokenizer = tokenizer
        devices = {"target": target.device, "draft": (target if draft is None else draft).device}
        llm.lanes = pick_lanes(lanes, devices["target"], devices["draft"], overlap=False)
        llm.placement = (
            PLACEMENT if llm.lanes == "virtual" else place(devices["target"], devices["draft"])
        )
        runner = CausalRunner(target)
        if width == "auto":
            runner.invariant_from = invariant_from(runner)
        check_runner(runner, "target", Width.pick(width, runner.invariant_from))
        makers: dict[str, Callable[[], Worker]] = {"target": partial(TargetWorker, runner)}
        if draft is not None:
            drafting = CausalRunner(draft)
            check_runner(drafting, "draft")
            makers["draft"] = partial(DraftWorker, drafting)
        llm._start(makers, devices, max_model_len, width, TIMEOUT, profile, predictor=None)
        return llm

    def _configure(
        self, options: DecodingOptions, method: str | None, width: AskedWidth, has_draft: bool
    ) -> None:
        if not (width is None or width == "auto" or (isinstance(width, int) and width >= 1)):
            raise InputError(f"width must be auto, 1 or more, or None, not {width!r}")
        _check_method(method, has_draft)
        self.options = options
        self.method = method or ("specbranch" if has_draft else "autoregressive")

    def _start(
        self,
        makers: dict[str, Callable[[], Worker]],
        devices: dict[str, torch.device],
        max_model_len: int | None,
        width: AskedWidth,
        timeout: float,
        profile: Profile | None,
        predictor: Path | Literal["online"] | None,
    ) -> None:
        started = start_lanes(self.lanes, makers, devices, self.placement, timeout, profile)
        try:
            asked = {name: lane.submit("describe") for name, lane in started.items()}
            facts: dict[str, ModelFacts] = {name: call.result() for name, call in asked.items()}
            longest = min(fact.positions for fact in facts.values())
            if max_model_len is not None and not 2 <= max_model_len <= longest:
                raise InputError(
                    f"max_model_len must be between 2 and {longest}, not {max_model_len}"
                )
            if isinstance(predictor, Path):
                gamma = None if self.options.gamma == "auto" else self.options.gamma
                HRAD.load(predictor).check(facts["target"], facts["draft"], gamma)
        except BaseException:
            for lane in started.values():
                lane.close()
            raise
        self.target, self.draft = facts["target"], facts.get("draft")
        self.max_model_len = max_model_len or longest
        self.width = Width.pick(width, self.target.invariant_from)
        self._lanes = Lanes(started["target"], started.get("draft"))
        self._ids = itertools.count()

    def plain(self) -> LLM:
        """The same target without its draft: plain decoding at its fastest.

        At natural width and, on a CPU, on the cores of both lanes. It shares this `LLM`'s lanes.
        """
        plain = copy.copy(self)
        plain.draft, plain.width, plain.method = None, NATURAL, "autoregressive"
        return plain

    def on_target_share(self) -> LLM:
        """The same pair, but its target never has more than its own share of the cores."""
        kept = copy.copy(self)
        kept.placement = replace(self.placement, alone=self.placement.target)
        return kept

    def generate(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        options: DecodingOptions | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Generate for each prompt (text or token ids), one after another.

        Args:
            method: instead of this `LLM`'s default.
            options: likewise.
            progress: show a bar over the prompts.

        Raises:
            InputError: a prompt is empty or leaves no room in the context, or an unknown method.
        """
        outputs = []
        encoded = [self._encode(prompt) for prompt in self._as_list(prompts)]
        for text, ids in tqdm(encoded, desc="prompts", disable=not progress):
            request = self._request(ids, params)
            for _ in self._rounds(request, method, options):
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

    def run(
        self, request: Request, decoder: Decoder, options: DecodingOptions | None = None
    ) -> Iterator[Round]:
        """Run a request by a decoding method of your own, the models in turn.

        Args:
            decoder: given both lanes, with the request's sequence open on them.
        """
        return self._timed(request, decoder, False, options or self.options)

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

    def round_trip(self, times: int = 100) -> float:
        """Seconds that an empty call of the draft lane takes, or the target's; the median."""
        lane = self._lanes.draft or self._lanes.target
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            lane.submit("ping").result()
            taken.append(time.perf_counter() - started)
        return median(taken)

    def forget(self) -> None:
        """Forget what was learned from the texts so far: acceptance, and the lanes' speed."""
        self._lanes.tunings.clear()
        for lane in self._lanes.all():
            lane.submit("forget").result()

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
        vocabulary = self.target.vocabulary
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
            stop_ids |= self.target.eos_ids
        sequence = Sequence(
            next(self._ids),
            ids,
            min(params.max_tokens, self.max_model_len - len(ids)),
            frozenset(stop_ids),
            ends_text=lambda tokens: self.tokenizer is not None and stream.push(tokens[-1]),
        )
        return Request(sequence, stream, params)

    def _rounds(
        self, request: Request, method: str | None, options: DecodingOptions | None = None
    ) -> Iterator[Round]:
        _check_method(method, self.draft is not None)
        method = method or self.method
        return self._timed(
            request, DECODERS[method], method in OVERLAPPING, options or self.options
        )

    def _timed(
        self, request: Request, decoder: Decoder, overlap: bool, options: DecodingOptions
    ) -> Iterator[Round]:
        """The decoder's rounds, timed and counted."""
        now = self._lanes.target.now
        started = before = now()
        for done in self._decode(request, decoder, overlap, options):
            ended = now()
            if not request.rounds:  # reading the prompt is no part of the first round
                before = min(span.start for span in done.spans)
            done.seconds, before = ended - before, ended
            request.rounds.append(done)
            request.metrics.add(done)
            request.metrics.seconds = ended - started
            if request.sequence.finished:
                request.stream.finish()
            yield done
            before += now() - ended  # the reader's time is not the round's
            started += now() - ended

    def _decode(
        self, request: Request, decoder: Decoder, overlap: bool, options: DecodingOptions
    ) -> Iterator[Round]:
        """The decoder's rounds; closes the sequence on its lanes, however it ends.

        Where the draft lane fails, plain decoding goes on from the last committed token.
        """
        sequence = request.sequence
        draftless = decoder in [DECODERS[method] for method in DRAFTLESS]
        drafting = not draftless and self._lanes.draft is not None
        overlap = drafting and overlap
        lanes = Lanes(self._lanes.target, placement=self.placement, tunings=self._lanes.tunings)
        if drafting and self._lanes.draft is not None:
            lanes.draft = self._lanes.draft
            lanes.draft.occupy(self.placement.share("draft", overlap))
        # The prompt is most work for the target, and next to none for the draft.
        lanes.share_target(overlap=False)
        opening = Opening(
            sequence.prompt,
            request.params,
            len(sequence.prompt) + sequence.max_tokens,
            self.target.vocabulary,
            sequence.stop_ids,
            options.branch_tokens,
            self.width,
            signals=decoder is specbranch and drafting and options.hrad,
        )
        opened = [(lane, lane.submit("open", sequence.id, opening)) for lane in lanes.all()]
        try:
            try:
                for _, call in opened:
                    call.result()
                decode = decoder if drafting or draftless else autoregressive
                yield from decode(sequence, lanes, options)
            except LaneError as error:
                if lanes.draft is None or error.lane != lanes.draft.name:
                    raise
                self._lose_draft(error)
                lanes.share_target(overlap=False)
                lanes.target.submit("rewind", sequence.id, sequence.length).result()
                yield from autoregressive(sequence, Lanes(lanes.target), options)
        finally:
            for lane, call in opened:
                if lane in self._lanes.all() and call.exception() is None:
                    self._close_sequence(lane, sequence.id)

    def _close_sequence(self, lane: Lane, sequence: int) -> None:
        try:
            lane.submit("close", sequence).result()
        except LaneError as error:
            if lane is not self._lanes.draft:
                raise
            self._lose_draft(error)

    def _lose_draft(self, error: LaneError) -> None:
        """Go on without the draft lane, and say so once."""
        logger.warning("%s: going on with plain decoding, slower but with the same text", error)
        assert self._lanes.draft is not None
        self._lanes.draft.close()
        self._lanes.draft = None
