"""Workers from models, or from the names of models, made where they will run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from specbranch.config import PaddingOption
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.models.cpu.blocks import has_blocks
from specbranch.models.info import ModelInfo
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.padding import Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from, same_with, validate
from specbranch.policy.hrad import HRAD, RecordingSetup
from specbranch.policy.online_hrad import GAMMA, LAYERS, OnlineHRAD
from specbranch.workers.drafter import Drafter
from specbranch.workers.verifier import Verifier
from specbranch.zoo import PREDICTORS

Predictor = Path | Literal["online"]


def pick_predictor(
    asked: str | Path | None, target: str, draft: str | None, gamma: int | Literal["auto"]
) -> Predictor | None:
    """The H-RAD that is meant: `auto` is the bundled pair's where γ is its own, and else none."""
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


def make_verifier(
    spec: ModelSpec, hrad: Predictor | None = None, alone: CpuAffinity | None = None
) -> Verifier:
    """Load a target, and its predictor.

    Args:
        alone: the CPU affinity that it may get later, instead of what it has now.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `validate`.
    """
    runner = CausalRunner(load_model(spec))
    _prepare(runner, spec, verifies=True)
    padding = _validated_padding(runner, spec.name, spec.padding)
    if alone is not None and padding.aligned:
        runner.any_threads = same_with(alone, runner, padding)
    predictor: HRAD | OnlineHRAD | None = None
    if hrad == "online":
        predictor = OnlineHRAD(_online_setup(runner.describe(spec.name)), runner.device)
    elif hrad is not None:
        predictor = HRAD.load(hrad).to(runner.device)
    return Verifier(runner, spec.name, predictor)


def wrap_verifier(model: PreTrainedModel, padding: PaddingOption) -> Verifier:
    """A verifier of a model in memory, which is left as it is.

    Raises:
        UnsupportedModelError: as `validate`.
    """
    runner = CausalRunner(model)
    _validated_padding(runner, "target", padding)
    return Verifier(runner)


def _validated_padding(runner: CausalRunner, name: str, asked: PaddingOption) -> Padding:
    """Find out what is batch-invariant, and try the model at the padding that follows."""
    if asked == "auto":
        runner.invariant_from = invariant_from(runner)
    padding = Padding.pick(asked, runner.invariant_from)
    validate(runner, name, padding)
    return padding


def _online_setup(target: ModelInfo) -> RecordingSetup:
    return RecordingSetup(
        target.name,
        target.fingerprint,
        draft="",
        draft_fingerprint="",
        gamma=GAMMA,
        layers=min(LAYERS, target.layers),
        hidden_size=target.hidden_size,
        dtype=target.dtype,
    )


def _prepare(runner: CausalRunner, spec: ModelSpec, verifies: bool) -> None:
    int8 = spec.quantization is not None
    if not spec.eager:
        runner.compile(spec.name, verifies, int8)
    elif verifies or int8 or has_blocks(runner.model):
        runner.pack(int8)


def make_drafter(spec: ModelSpec) -> Drafter:
    """Load a draft.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `validate`.
    """
    runner = CausalRunner(load_model(spec))
    _prepare(runner, spec, verifies=False)
    validate(runner, spec.name)
    return Drafter(runner, spec.name)


def wrap_drafter(model: PreTrainedModel) -> Drafter:
    """A drafter of a model in memory, which is left as it is.

    Raises:
        UnsupportedModelError: as `validate`.
    """
    runner = CausalRunner(model)
    validate(runner, "draft")
    return Drafter(runner)
