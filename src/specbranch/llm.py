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

from specbranch.config import Branching
from specbranch.engine.engine import Engine, Prompt
from specbranch.errors import InputError
from specbranch.executors.base import Executor, Worker
from specbranch.executors.cpu_affinity import AffinityPlan, place
from specbranch.executors.process import TIMEOUT
from specbranch.executors.start import pick_executor, start_executors
from specbranch.executors.virtual import Profile, affinity_of
from specbranch.methods import (
    METHODS,
    OVERLAPPING,
    Decoder,
    Executors,
    SpeculativeConfig,
    check_method,
)
from specbranch.metrics import Round
from specbranch.models.info import ModelInfo
from specbranch.models.loader import ModelSpec, check_vocabularies, load_tokenizer, named_device
from specbranch.models.padding import NATURAL, Padding, PaddingOption
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from, validate_cache
from specbranch.outputs import Piece, Request, RequestOutput
from specbranch.policy.hrad import HRAD
from specbranch.sampling_params import SamplingParams
from specbranch.workers.drafter import DraftWorker
from specbranch.workers.factory import Predictor, make_draft, make_target, pick_predictor
from specbranch.workers.verifier import TargetWorker


class LLM:
    """A target and a draft, ready to generate.

    Args:
        target: name of a bundled model, folder, or name on the Hugging Face hub.
        draft: likewise; None leaves only the methods of the target alone.
        method: default decoding method: `specbranch`, `pearl`, `speculative`, `adaedl`; or, of the
            target alone, `lookup`, `lookahead` or `autoregressive`.
        gamma: γ, most tokens drafted ahead in one round; `auto` follows the executors' speed.
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
        executors: where the models run: `process` (the draft in one of its own, each on its own
            cores
            or GPU), `thread` (each on its own CUDA stream of one GPU), `inline` (in turn),
            `virtual` (in turn, with the times of `profile`), or `auto`: the best for the devices
            and the method.
        target_cores, draft_cores: with process executors, as ``0-3,6``; by default divided between
            them. The calling thread has its cores and number of threads back after every call.
        executor_timeout: seconds after which a process executor that does not answer is given up.
        profile: how fast the virtual executors are.
        padding: tokens of a target forward. With `auto` and with a number all methods give
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
        executors: the kind of executors in use.
        affinity: their shares of the cores.
        padding: of the target's forwards.
        max_model_len: most tokens of a text, prompt included.
        tokenizer: of both models, or None.

    Raises:
        InputError: a model is not there or broken, or the vocabularies differ.
        UnsupportedModelError: a model cannot be decoded losslessly.
        ExecutorError: a executor died while its model was loaded.
    """

    def __init__(
        self,
        target: str = "target",
        draft: str | None = "draft",
        *,
        method: str | None = None,
        gamma: int | Literal["auto"] = SpeculativeConfig.gamma,
        epsilon: float | Literal["auto"] = SpeculativeConfig.epsilon,
        k_max: int | Literal["auto"] = SpeculativeConfig.k_max,
        branching: Branching = SpeculativeConfig.branching,
        speculate: Literal["auto", "always"] = SpeculativeConfig.speculate,
        hrad: str | Path | None = "auto",
        retrieval: bool = SpeculativeConfig.retrieval,
        dtype: str = "auto",
        quantization: str | None = None,
        draft_quantization: str | None = None,
        device: str = "auto",
        target_device: str | None = None,
        draft_device: str | None = None,
        sharded: bool = False,
        executors: str = "auto",
        target_cores: str | None = None,
        draft_cores: str | None = None,
        executor_timeout: float = TIMEOUT,
        profile: Profile | None = None,
        padding: PaddingOption = "auto",
        max_model_len: int | None = None,
        enforce_eager: bool = False,
    ) -> None:
        options = SpeculativeConfig(
            gamma, epsilon, k_max, branching, speculate, retrieval=retrieval
        )
        self._configure(options, method, padding, draft is not None)
        if executor_timeout <= 0:
            raise InputError(
                f"executor_timeout must be more than 0 seconds, not {executor_timeout:g}"
            )
        tokenizer = load_tokenizer(target)
        eager = enforce_eager or os.environ.get("SPECBRANCH_ENFORCE_EAGER", "0") != "0"
        placed = target_device or device
        specs = {
            "target": ModelSpec(target, dtype, placed, sharded, padding, eager, quantization),
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
        devices = {executor: named_device(spec.device) for executor, spec in specs.items()}
        devices.setdefault("draft", devices["target"])
        overlap = draft is not None and self.method in OVERLAPPING
        self.executors = pick_executor(executors, devices["target"], devices["draft"], overlap)
        if self.executors != "process" and (target_cores or draft_cores):
            raise InputError(
                f"only process executors have cores of their own, and these are {self.executors}: "
                "use executors=process"
            )
        affinity = affinity_of(profile)
        if self.executors != "virtual":
            affinity = place(devices["target"], devices["draft"], target_cores, draft_cores)
        alone = affinity.alone if self.executors in ("process", "thread") else None
        makers: dict[str, Callable[[], Worker]] = {
            "target": partial(make_target, specs["target"], predictor, alone)
        }
        if draft is not None:
            makers["draft"] = partial(make_draft, specs["draft"])
        started = start_executors(
            self.executors, makers, devices, affinity, executor_timeout, profile
        )
        self._open(started, tokenizer, affinity, padding, max_model_len, predictor)

    @classmethod
    def from_models(
        cls,
        target: PreTrainedModel,
        draft: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        method: str | None = None,
        options: SpeculativeConfig | None = None,
        executors: str = "inline",
        padding: PaddingOption = "auto",
        max_model_len: int | None = None,
        profile: Profile | None = None,
    ) -> LLM:
        """An `LLM` of models already in memory; without a tokenizer it takes and gives token ids.

        The caller vouches that both models share their vocabulary. Process executors, whose models
        are loaded where they run, are for models with names.
        """
        if executors == "process":
            raise InputError(
                "process executors load their models by name: use LLM(target=…, draft=…)"
            )
        llm = cls.__new__(cls)
        llm._configure(options or SpeculativeConfig(), method, padding, draft is not None)
        devices = {"target": target.device, "draft": (target if draft is None else draft).device}
        llm.executors = pick_executor(executors, devices["target"], devices["draft"], overlap=False)
        affinity = affinity_of(profile)
        if llm.executors != "virtual":
            affinity = place(devices["target"], devices["draft"])
        runner = CausalRunner(target)
        if padding == "auto":
            runner.invariant_from = invariant_from(runner)
        validate_cache(runner, "target", Padding.pick(padding, runner.invariant_from))
        makers: dict[str, Callable[[], Worker]] = {"target": partial(TargetWorker, runner)}
        if draft is not None:
            drafting = CausalRunner(draft)
            validate_cache(drafting, "draft")
            makers["draft"] = partial(DraftWorker, drafting)
        started = start_executors(llm.executors, makers, devices, affinity, profile=profile)
        llm._open(started, tokenizer, affinity, padding, max_model_len, predictor=None)
        return llm

    def _configure(
        self,
        options: SpeculativeConfig,
        method: str | None,
        padding: PaddingOption,
        has_draft: bool,
    ) -> None:
        if not (
            padding is None or padding == "auto" or (isinstance(padding, int) and padding >= 1)
        ):
            raise InputError(f"padding must be auto, 1 or more, or None, not {padding!r}")
        check_method(method, has_draft)
        self.options = options
        self.method = method or ("specbranch" if has_draft else "autoregressive")

    def _open(
        self,
        executors: dict[str, Executor],
        tokenizer: PreTrainedTokenizerBase | None,
        affinity: AffinityPlan,
        padding: PaddingOption,
        max_model_len: int | None,
        predictor: Predictor | None,
    ) -> None:
        self._executors = Executors(executors["target"], executors.get("draft"))
        try:
            self._engine = Engine.over(self._executors, tokenizer, affinity, padding, max_model_len)
            if isinstance(predictor, Path) and self.draft is not None:
                gamma = None if self.options.gamma == "auto" else self.options.gamma
                HRAD.load(predictor).check(self.target, self.draft, gamma)
        except BaseException:
            self.close()
            raise

    @property
    def target(self) -> ModelInfo:
        return self._engine.target

    @property
    def draft(self) -> ModelInfo | None:
        return self._engine.draft

    @property
    def tokenizer(self) -> Any:
        return self._engine.tokenizer

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def affinity(self) -> AffinityPlan:
        return self._engine.affinity

    @property
    def padding(self) -> Padding:
        return self._engine.padding

    def plain(self) -> LLM:
        """The same target without its draft: plain decoding at its fastest.

        At natural padding and, on a CPU, on the cores of both executors. It shares this `LLM`'s
        executors.
        """
        plain = copy.copy(self)
        plain.method = "autoregressive"
        plain._engine = replace(self._engine, draft=None, padding=NATURAL)
        return plain

    def on_target_share(self) -> LLM:
        """The same pair, but its target never has more than its own share of the cores."""
        kept = copy.copy(self)
        affinity = replace(self.affinity, alone=self.affinity.target)
        kept._engine = replace(self._engine, affinity=affinity)
        return kept

    def generate(
        self,
        prompts: Prompt | ListLike[Prompt],
        params: SamplingParams | None = None,
        *,
        method: str | None = None,
        options: SpeculativeConfig | None = None,
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
        self, request: Request, decoder: Decoder, options: SpeculativeConfig | None = None
    ) -> Iterator[Round]:
        """Run a request by a decoding method of your own, the models in turn.

        Args:
            decoder: given both executors, with the request's sequence open on them.
        """
        return self._engine.run(request, decoder, False, options or self.options)

    def output(self, request: Request, prompt: str = "") -> RequestOutput:
        """What a request has come to."""
        return request.output(prompt)

    def round_trip(self, times: int = 100) -> float:
        """Seconds that an empty call of the draft executor takes, or the target's; the median."""
        executor = self._executors.draft or self._executors.target
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            executor.submit("ping").result()
            taken.append(time.perf_counter() - started)
        return median(taken)

    def reset(self) -> None:
        """Forget what was learned from the texts so far: acceptance, and the executors' speed."""
        self._executors.tunings.clear()
        for executor in self._executors.all():
            executor.submit("reset").result()

    def close(self) -> None:
        """Release both executors."""
        self._executors.closed = True
        for executor in self._executors.all():
            executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rounds(
        self, request: Request, method: str | None, options: SpeculativeConfig | None = None
    ) -> Iterator[Round]:
        check_method(method, self.draft is not None)
        method = method or self.method
        return self._engine.run(
            request, METHODS[method], method in OVERLAPPING, options or self.options
        )


def _as_list(prompts: Prompt | ListLike[Prompt]) -> list[Any]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]
    return list(prompts)
