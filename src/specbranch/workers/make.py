"""Workers from the names of their models, made where they will run."""

from __future__ import annotations

from pathlib import Path

from specbranch.hrad.predictor import HRAD
from specbranch.models.loading import ModelSpec, load_model
from specbranch.models.runner import CausalRunner
from specbranch.models.selfcheck import check_runner, invariant_from
from specbranch.models.width import Width
from specbranch.workers.draft import DraftWorker
from specbranch.workers.target import TargetWorker


def make_target(spec: ModelSpec, hrad: Path | None = None) -> TargetWorker:
    """Load a target, and its predictor.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `check_runner`.
    """
    runner = CausalRunner(load_model(spec))
    runner.pack()
    if spec.width == "auto":
        runner.invariant_from = invariant_from(runner)
    check_runner(runner, spec.name, Width.pick(spec.width, runner.invariant_from))
    return TargetWorker(runner, spec.name, HRAD.load(hrad) if hrad else None)


def make_draft(spec: ModelSpec) -> DraftWorker:
    """Load a draft.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `check_runner`.
    """
    runner = CausalRunner(load_model(spec))
    check_runner(runner, spec.name)
    return DraftWorker(runner, spec.name)
