"""Workers from the names of their models, made where they will run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.models.info import ModelInfo
from specbranch.models.loader import ModelSpec, load_model
from specbranch.models.padding import Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import invariant_from, same_with, validate_cache
from specbranch.policy.hrad import HRAD
from specbranch.policy.online_hrad import GAMMA, LAYERS, OnlineHRAD
from specbranch.training.hrad.records import RecordingSetup
from specbranch.workers.drafter import DraftWorker
from specbranch.workers.verifier import TargetWorker
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


def make_target(
    spec: ModelSpec, hrad: Predictor | None = None, alone: CpuAffinity | None = None
) -> TargetWorker:
    """Load a target, and its predictor.

    Args:
        alone: what it may get of the machine later, instead of what it has now.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `validate_cache`.
    """
    runner = CausalRunner(load_model(spec))
    _prepare(runner, spec, verifies=True)
    if spec.padding == "auto":
        runner.invariant_from = invariant_from(runner)
    padding = Padding.pick(spec.padding, runner.invariant_from)
    validate_cache(runner, spec.name, padding)
    if alone is not None and padding.aligned:
        runner.any_threads = same_with(alone, runner, padding)
    predictor: HRAD | OnlineHRAD | None = None
    if hrad == "online":
        predictor = OnlineHRAD(_online_setting(runner.describe(spec.name)), runner.device)
    elif hrad is not None:
        predictor = HRAD.load(hrad).to(runner.device)
    return TargetWorker(runner, spec.name, predictor)


def _online_setting(target: ModelInfo) -> RecordingSetup:
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
    elif verifies or int8:
        runner.pack(int8)


def make_draft(spec: ModelSpec) -> DraftWorker:
    """Load a draft.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `validate_cache`.
    """
    runner = CausalRunner(load_model(spec))
    _prepare(runner, spec, verifies=False)
    validate_cache(runner, spec.name)
    return DraftWorker(runner, spec.name)
