"""Workers from the names of their models, made where they will run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from specbranch.hrad.online import GAMMA, LAYERS, OnlineHRAD
from specbranch.hrad.predictor import HRAD
from specbranch.hrad.records import Setting
from specbranch.lanes.placement import Share
from specbranch.models.facts import ModelFacts
from specbranch.models.loading import ModelSpec, load_model
from specbranch.models.runner import CausalRunner
from specbranch.models.selfcheck import check_runner, invariant_from, same_with
from specbranch.models.width import Width
from specbranch.workers.draft import DraftWorker
from specbranch.workers.target import TargetWorker
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
    spec: ModelSpec, hrad: Predictor | None = None, alone: Share | None = None
) -> TargetWorker:
    """Load a target, and its predictor.

    Args:
        alone: what it may get of the machine later, instead of what it has now.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `check_runner`.
    """
    runner = CausalRunner(load_model(spec))
    _prepare(runner, spec, verifies=True)
    if spec.width == "auto":
        runner.invariant_from = invariant_from(runner)
    width = Width.pick(spec.width, runner.invariant_from)
    check_runner(runner, spec.name, width)
    if alone is not None and width.aligned:
        runner.any_threads = same_with(alone, runner, width)
    predictor: HRAD | OnlineHRAD | None = None
    if hrad == "online":
        predictor = OnlineHRAD(_online_setting(runner.describe(spec.name)), runner.device)
    elif hrad is not None:
        predictor = HRAD.load(hrad).to(runner.device)
    return TargetWorker(runner, spec.name, predictor)


def _online_setting(target: ModelFacts) -> Setting:
    return Setting(
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
        InputError, UnsupportedModelError: as `load_model` and `check_runner`.
    """
    runner = CausalRunner(load_model(spec))
    _prepare(runner, spec, verifies=False)
    check_runner(runner, spec.name)
    return DraftWorker(runner, spec.name)
