"""An engine from its configuration: load the models where they will run, and join them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbranch.config import EngineConfig, ModelConfig
from specbranch.engine.engine import Engine
from specbranch.engine.executor_pair import ExecutorPair
from specbranch.engine.models import EngineModels
from specbranch.errors import InputError
from specbranch.executors.base import Executor
from specbranch.executors.cpu_affinity import AffinityPlan, divide
from specbranch.executors.start import pick_executor, start_drafter, start_executors
from specbranch.executors.virtual import affinity_of
from specbranch.methods.registry import pick_method
from specbranch.models.info import ModelInfo
from specbranch.models.loader import ModelSpec, load_tokenizer, named_device
from specbranch.models.padding import Padding
from specbranch.models.pairs import find_pair, locate
from specbranch.models.vocabularies import same_ids
from specbranch.policy.hrad import HRAD
from specbranch.workers.drafter import Drafter
from specbranch.workers.factory import (
    make_drafter,
    make_verifier,
    pick_predictor,
    wrap_drafter,
    wrap_verifier,
)
from specbranch.workers.requests import DescribeRequest
from specbranch.workers.verifier import Verifier

logger = logging.getLogger("specbranch")

OWN_DRAFT = "draft"  # the bundled target's


@dataclass(frozen=True)
class Assembled:
    """An engine, and the kind of executors that it runs on."""

    engine: Engine
    executor: str


def of_pair(model: ModelConfig) -> ModelConfig:
    """The configuration with the target and the draft of the pair that it names, if any.

    Raises:
        InputError: no such pair, or its target cannot be got.
    """
    if model.pair is None or model.pair == "toy":
        return replace(model, pair=None)
    pair = find_pair(model.pair)
    draft = model.draft
    if draft == "auto":
        draft = next(iter(pair.drafts), None)
    chosen = str(pair.drafts[draft]) if draft is not None and draft in pair.drafts else draft
    return replace(model, pair=None, target=locate(pair), draft=chosen)


def pick_draft(model: ModelConfig) -> str | None:
    """The draft that is meant: `auto` is the bundled one, and only for the bundled target."""
    if model.draft != "auto":
        return model.draft
    if model.target == "target":
        return OWN_DRAFT
    logger.warning(
        "no draft for %s: decoding by prompt lookup; a small model with the same tokenizer "
        "makes it faster: give one as draft",
        model.target,
    )
    return None


def assemble(config: EngineConfig) -> Assembled:
    """Load a pair by name.

    Raises:
        InputError: a model is not there or broken, or the vocabularies differ.
        UnsupportedModelError: a model cannot be decoded losslessly.
        ExecutorError: an executor died while its model was loaded.
    """
    model = of_pair(config.model)
    config = replace(config, model=model)
    draft = pick_draft(model)
    pick_method(config.speculative.method, draft is not None)  # refuses what is none
    tokenizer = load_tokenizer(model.target)
    target_spec, draft_spec = _specs(model, draft)
    if draft_spec is not None and not same_ids(tokenizer, load_tokenizer(draft_spec.name)):
        draft_spec = replace(draft_spec, tokens_of=model.target)
    predictor = pick_predictor(model.hrad, model.target, draft, config.speculative.gamma)
    devices = {"target": named_device(target_spec.device)}
    devices["draft"] = (
        named_device(draft_spec.device) if draft_spec is not None else devices["target"]
    )
    kind = _pick_executor(config, devices, draft is not None)
    plan = _affinity(config, devices, kind)
    alone = plan.alone if kind in ("process", "thread") else None
    assembled = _start(
        config,
        kind,
        partial(make_verifier, target_spec, predictor, alone),
        None if draft_spec is None else partial(make_drafter, draft_spec),
        devices,
        plan,
        tokenizer,
    )
    if draft_spec is not None and draft_spec.tokens_of is not None:
        _say_what_is_drafted(assembled.engine.models)
    if isinstance(predictor, Path) and assembled.engine.models.draft is not None:
        gamma = config.speculative.gamma
        try:
            HRAD.load(predictor).check(
                assembled.engine.models.target,
                assembled.engine.models.draft,
                None if gamma == "auto" else gamma,
            )
        except BaseException as error:
            if model.hrad != "auto" or not isinstance(error, InputError):
                assembled.engine.executors.close()
                raise
            # It was not asked for, and belongs to another target or to earlier weights.
            engine = assembled.engine
            engine.models = replace(engine.models, hrad=False)
    return assembled


def assemble_from_models(
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: EngineConfig,
) -> Assembled:
    """Join models that are in memory. The caller vouches that they share their vocabulary.

    Raises:
        InputError: process executors, whose models are loaded where they run.
        UnsupportedModelError: a model cannot be decoded losslessly.
    """
    if config.executors.executor == "process":
        raise InputError("process executors load their models by name: use LLM(target=…, draft=…)")
    pick_method(config.speculative.method, draft is not None)  # refuses what is none
    devices = {"target": target.device, "draft": (target if draft is None else draft).device}
    kind = pick_executor(
        config.executors.executor, devices["target"], devices["draft"], overlap=False
    )
    plan = _affinity(config, devices, kind)
    return _start(
        config,
        kind,
        partial(wrap_verifier, target, config.model.padding),
        None if draft is None else partial(wrap_drafter, draft),
        devices,
        plan,
        tokenizer,
    )


def _say_what_is_drafted(models: EngineModels) -> None:
    if models.draft is not None:
        logger.warning(
            "the draft %s has another tokenizer than its target: it drafts the %d of %d tokens "
            "that both have",
            models.draft.name,
            models.draft.drafted,
            models.draft.vocabulary,
        )


def _specs(model: ModelConfig, draft: str | None) -> tuple[ModelSpec, ModelSpec | None]:
    eager = model.enforce_eager or os.environ.get("SPECBRANCH_ENFORCE_EAGER", "0") != "0"
    device = model.draft_device or model.device
    drafting = None
    if draft is not None:
        drafting = ModelSpec(
            draft,
            model.dtype,
            device,
            eager=eager,
            quantization=model.draft_quantization,
            drafts=True,
        )
    target = ModelSpec(
        model.target,
        model.dtype,
        model.target_device or model.device,
        model.sharded,
        model.padding,
        eager,
        model.quantization,
        beside=drafting,
    )
    return target, drafting


def _pick_executor(config: EngineConfig, devices: dict[str, torch.device], has_draft: bool) -> str:
    asked = config.executors
    overlap = has_draft and pick_method(config.speculative.method, has_draft).overlaps
    kind = pick_executor(asked.executor, devices["target"], devices["draft"], overlap)
    if kind != "process" and (asked.target_cores or asked.draft_cores):
        raise InputError(
            f"only process executors have cores of their own, and these are {kind}: "
            "use executor=process"
        )
    return kind


def _affinity(config: EngineConfig, devices: dict[str, torch.device], kind: str) -> AffinityPlan:
    asked = config.executors
    if kind == "virtual":
        return affinity_of(asked.profile)
    return divide(devices["target"], devices["draft"], asked.target_cores, asked.draft_cores)


def _start(
    config: EngineConfig,
    kind: str,
    make_verifier: Callable[[], Verifier],
    make_drafter: Callable[[], Drafter] | None,
    devices: dict[str, torch.device],
    plan: AffinityPlan,
    tokenizer: Any,
) -> Assembled:
    """Start the executors, and an engine over them."""
    asked = config.executors
    verifier, drafter = start_executors(
        kind,
        make_verifier,
        make_drafter,
        devices,
        plan,
        asked.executor_timeout,
        asked.profile,
        asked.startup_timeout,
    )
    executors = ExecutorPair(verifier, drafter, plan)
    restart: Callable[[], Executor[Drafter]] | None = None
    if kind == "process" and make_drafter is not None:
        restart = partial(
            start_drafter,
            kind,
            make_drafter,
            devices["draft"],
            plan,
            asked.executor_timeout,
            startup_timeout=asked.startup_timeout,
        )
    try:
        models = _describe(config.model, executors, tokenizer)
    except BaseException:
        executors.close()
        raise
    engine = Engine(executors, models, config.scheduler, restart, config.speculative)
    return Assembled(engine, kind)


def _describe(model: ModelConfig, executors: ExecutorPair, tokenizer: Any) -> EngineModels:
    """What runs on executors that have just started.

    Raises:
        InputError: a `max_model_len` beyond the target's own.
    """
    describing = executors.verifier.submit(DescribeRequest())
    draft: ModelInfo | None = None
    if executors.drafter is not None:
        draft = executors.drafter.submit(DescribeRequest()).result()
    target = describing.result()
    longest, asked = target.positions, model.max_model_len
    if asked is not None and not 2 <= asked <= longest:
        raise InputError(f"max_model_len must be between 2 and {longest}, not {asked}")
    if not target.any_threads and executors.affinity is not None:
        logger.warning(
            "%s rounds differently with other numbers of threads: to stay bit-exact it keeps "
            "%s where the draft is idle, too",
            target.name,
            executors.affinity.target,
        )
        executors.affinity = replace(executors.affinity, alone=executors.affinity.target)
    padding = Padding.pick(model.padding, target.invariant_from, target.states)
    defaults = dict(target.sampling_defaults) if model.generation_config == "auto" else {}
    return EngineModels(target, draft, tokenizer, asked or longest, padding, defaults=defaults)
