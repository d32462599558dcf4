"""`LLM`: load a pair, generate, stream."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListLike
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbranch.decoders import (
    DECODERS,
    OVERLAPPING,
    Decoder,
    DecodingOptions,
    Lanes,
    check_method,
)
from specbranch.engine import Engine, Prompt
from specbranch.errors import InputError
from specbranch.hrad.predictor import HRAD
from specbranch.lanes.base import Lane, Worker
from specbranch.lanes.placement import Placement, place
from specbranch.lanes.process import TIMEOUT
from specbranch.lanes.start import pick_lanes, start_lanes
from specbranch.lanes.virtual import Profile, placement_of
from specbranch.metrics import Round
from specbranch.models.facts import ModelFacts
from specbranch.models.loading import ModelSpec, check_vocabularies, load_tokenizer, named_device
from specbranch.models.runner import CausalRunner
from specbranch.models.selfcheck import check_runner, invariant_from
from specbranch.models.width import NATURAL, AskedWidth, Width
from specbranch.options import Branching
from specbranch.outputs import Piece, Request, RequestOutput
from specbranch.sampling import SamplingParams
from specbranch.workers.draft import DraftWorker
from specbranch.workers.make import Predictor, make_draft, make_target, pick_predictor
from specbranch.workers.target import TargetWorker


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
        speculate: `always`, or `auto`: not where it is faster to verify what the text repeats, or
            nothing, on the cores of both models.
        hrad: the predictor: a file that `specbranch hrad train` wrote, None, `online`, which learns
            from the running text, or `auto`: the bundled pair has one, for its γ, and others have
            none.
        retrieval: draft a text that repeats itself from itself, too.
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        quantization: `int8`: the target's linear layers have weights and activations of 8 bits, on
            a CPU with VNNI instructions. The text is then that of the quantized target.
        draft_quantization: likewise of the draft, which changes no text.
        device: where both models run; `target_device` and `draft_device` override it.
        sharded: spread the target over all GPUs (`device_map="auto"`).
        lanes: where the models run: `process` (the draft in one of its own, each on its own cores
            or GPU), `thread` (each on its own CUDA stream of one GPU), `inline` (in turn),
            `virtual` (in turn, with the times of `profile`), or `auto`: the best for the devices
            and the method.
        target_cores, draft_cores: with process lanes, as ``0-3,6``; by default divided between
            them. The calling thread has its cores and number of threads back after every call.
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
        max_model_len: most tokens of a text, prompt included.
        tokenizer: of both models, or None.

    Raises:
        InputError: a model is not there or broken, or the vocabularies differ.
        UnsupportedModelError: a model cannot be decoded losslessly.
        LaneError: a lane died while its model was loaded.
    """

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
        quantization: str | None = None,
        draft_quantization: str | None = None,
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
        tokenizer = load_tokenizer(target)
        eager = enforce_eager or os.environ.get("SPECBRANCH_ENFORCE_EAGER", "0") != "0"
        placed = target_device or device
        specs = {
            "target": ModelSpec(target, dtype, placed, sharded, width, eager, quantization),
        }
        predictor = pick_predictor(hrad, target, draft, gamma)
        if draft is not None:
            check_vocabularies(tokenizer, load_tokenizer(draft), (target, draft))
            specs["draft"] = ModelSpec(
                draft,
                dtype,
                draft_device or device,
                eager=eager,
                quantization=draft_quantization,
            )
        devices = {lane: named_device(spec.device) for lane, spec in specs.items()}
        devices.setdefault("draft", devices["target"])
        overlap = draft is not None and self.method in OVERLAPPING
        self.lanes = pick_lanes(lanes, devices["target"], devices["draft"], overlap)
        if self.lanes != "process" and (target_cores or draft_cores):
            raise InputError(
                f"only process lanes have cores of their own, and these are {self.lanes}: "
                "use lanes=process"
            )
        placement = placement_of(profile)
        if self.lanes != "virtual":
            placement = place(devices["target"], devices["draft"], target_cores, draft_cores)
        alone = placement.alone if self.lanes in ("process", "thread") else None
        makers: dict[str, Callable[[], Worker]] = {
            "target": partial(make_target, specs["target"], predictor, alone)
        }
        if draft is not None:
            makers["draft"] = partial(make_draft, specs["draft"])
        started = start_lanes(self.lanes, makers, devices, placement, lane_timeout, profile)
        self._open(started, tokenizer, placement, width, max_model_len, predictor)

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
        devices = {"target": target.device, "draft": (target if draft is None else draft).device}
        llm.lanes = pick_lanes(lanes, devices["target"], devices["draft"], overlap=False)
        placement = placement_of(profile)
        if llm.lanes != "virtual":
            placement = place(devices["target"], devices["draft"])
        runner = CausalRunner(target)
        if width == "auto":
            runner.invariant_from = invariant_from(runner)
        check_runner(runner, "target", Width.pick(width, runner.invariant_from))
        makers: dict[str, Callable[[], Worker]] = {"target": partial(TargetWorker, runner)}
        if draft is not None:
            drafting = CausalRunner(draft)
            check_runner(drafting, "draft")
            makers["draft"] = partial(DraftWorker, drafting)
        started = start_lanes(llm.lanes, makers, devices, placement, profile=profile)
        llm._open(started, tokenizer, placement, width, max_model_len, predictor=None)
        return llm

    def _configure(
        self, options: DecodingOptions, method: str | None, width: AskedWidth, has_draft: bool
    ) -> None:
        if not (width is None or width == "auto" or (isinstance(width, int) and width >= 1)):
            raise InputError(f"width must be auto, 1 or more, or None, not {width!r}")
        check_method(method, has_draft)
        self.options = options
        self.method = method or ("specbranch" if has_draft else "autoregressive")

    def _open(
        self,
        lanes: dict[str, Lane],
        tokenizer: PreTrainedTokenizerBase | None,
        placement: Placement,
        width: AskedWidth,
        max_model_len: int | None,
        predictor: Predictor | None,
    ) -> None:
        self._lanes = Lanes(lanes["target"], lanes.get("draft"))
        try:
            self._engine = Engine.over(self._lanes, tokenizer, placement, width, max_model_len)
            if isinstance(predictor, Path) and self.draft is not None:
                gamma = None if self.options.gamma == "auto" else self.options.gamma
                HRAD.load(predictor).check(self.target, self.draft, gamma)
        except BaseException:
            self.close()
            raise

    @property
    def target(self) -> ModelFacts:
        return self._engine.target

    @property
    def draft(self) -> ModelFacts | None:
        return self._engine.draft

    @property
    def tokenizer(self) -> Any:
        return self._engine.tokenizer

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def placement(self) -> Placement:
        return self._engine.placement

    @property
    def width(self) -> Width:
        return self._engine.width

    def plain(self) -> LLM:
        """The same target without its draft: plain decoding at its fastest.

        At natural width and, on a CPU, on the cores of both lanes. It shares this `LLM`'s lanes.
        """
        plain = copy.copy(self)
        plain.method = "autoregressive"
        plain._engine = replace(self._engine, draft=None, width=NATURAL)
        return plain

    def on_target_share(self) -> LLM:
        """The same pair, but its target never has more than its own share of the cores."""
        kept = copy.copy(self)
        placement = replace(self.placement, alone=self.placement.target)
        kept._engine = replace(self._engine, placement=placement)
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
        encoded = [self._engine.encode(prompt) for prompt in _as_list(prompts)]
        for text, ids in tqdm(encoded, desc="prompts", disable=not progress):
            request = self._engine.request(ids, params)
            for _ in self._rounds(request, method, options):
                pass
            outputs.append(request.output(text))
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
        return self._engine.request(self._engine.encode(prompt)[1], params)

    def stream_request(self, request: Request, *, method: str | None = None) -> Iterator[Piece]:
        """Run a request, yielding text as soon as it is final."""
        return request.pieces(self._rounds(request, method))

    def run(
        self, request: Request, decoder: Decoder, options: DecodingOptions | None = None
    ) -> Iterator[Round]:
        """Run a request by a decoding method of your own, the models in turn.

        Args:
            decoder: given both lanes, with the request's sequence open on them.
        """
        return self._engine.run(request, decoder, False, options or self.options)

    def output(self, request: Request, prompt: str = "") -> RequestOutput:
        """What a request has come to."""
        return request.output(prompt)

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
        self._lanes.closed = True
        for lane in self._lanes.all():
            lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rounds(
        self, request: Request, method: str | None, options: DecodingOptions | None = None
    ) -> Iterator[Round]:
        check_method(method, self.draft is not None)
        method = method or self.method
        return self._engine.run(
            request, DECODERS[method], method in OVERLAPPING, options or self.options
        )


def _as_list(prompts: Prompt | ListLike[Prompt]) -> list[Any]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]
    return list(prompts)
