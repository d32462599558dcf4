"""Workers from the names of their models, made where they will run."""

from __future__ import annotations

from specbranch.models.loading import ModelSpec, load_model
from specbranch.models.runner import CausalRunner
from specbranch.models.selfcheck import check_runner
from specbranch.workers.draft import DraftWorker
from specbranch.workers.target import TargetWorker


def _checked_runner(spec: ModelSpec) -> CausalRunner:
    runner = CausalRunner(load_model(spec))
    check_runner(runner, spec.name, spec.width)
    return runner


def make_target(spec: ModelSpec) -> TargetWorker:
    """Load a target.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `check_runner`.
    """
    return TargetWorker(_checked_runner(spec), spec.name)


def make_draft(spec: ModelSpec) -> DraftWorker:
    """Load a draft.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `check_runner`.
    """
    return DraftWorker(_checked_runner(spec), spec.name)
