"""Workers from models, or from the names of models, made where they will run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from specbranch.config import PaddingOption
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.models.cpu.blocks import has_blocks
from specbranch.models.info import ModelInfo
from specbranch.models.loader import ModelSpec, load_model, load_tokenizer
from specbranch.models.padding import Padding
from specbranch.models.recurrent_runner import runner_of
from specbranch.models.runner import CausalRunner
from specbranch.models.translated_runner import TranslatedRunner
from specbranch.models.validation import invariant_from, same_with, validate
from specbranch.models.vocabulary_map import VocabularyMap
from specbranch.policy.hrad import HRAD, RecordingSetup
from specbranch.policy.online_hrad import GAMMA, LAYERS, OnlineHRAD
from specbranch.workers.drafter import Drafter
from specbranch.workers.verifier import Verifier
from specbranch.zoo import PREDICTORS

Predictor = Path | Literal["online"]


def pick_predictor(
    asked: str | Path | None, target: str, draft: str | None, gamma: int | Literal["auto"]
) -> Predictor | None:
    """The H-RAD that is meant: `auto` is the one that lies beside the draft, where γ is its own.

    In a draft's folder it is ``hrad.safetensors``; beside ``X.gguf`` it is ``X.hrad.safetensors``.
    """
    if asked is None or draft is None:
        return None
    if asked == "online":
        return "online"
    if asked != "auto":
        return Path(asked)
    found = PREDICTORS.get(draft) if target == "target" else _beside(Path(draft))
    # One for another γ would be refused if it were asked for; unasked, it is left out.
    fits = found and (gamma == "auto" or HRAD.load(found).gamma == gamma)
    return found if fits else None


def _beside(draft: Path) -> Path | None:
    file = draft / "hrad.safetensors"
    if draft.suffix == ".gguf":
        file = draft.with_suffix(".hrad.safetensors")
    return file if file.is_file() else None


def make_verifier(
    spec: ModelSpec, hrad: Predictor | None = None, alone: CpuAffinity | None = None
) -> Verifier:
    """Load a target, and its predictor.

    Args:
        alone: the CPU affinity that it may get later, instead of what it has now.

    Raises:
        InputError, UnsupportedModelError: as `load_model` and `validate`.
    """
    runner = runner_of(load_model(spec))
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
    runner = runner_of(model)
    _validated_padding(runner, "target", padding)
    return Verifier(runner)


def _validated_padding(runner: CausalRunner, name: str, asked: PaddingOption) -> Padding:
    """Find out what is batch-invariant, and try the model at the padding that follows."""
    if asked == "auto":
        runner.invariant_from = invariant_from(runner)
    padding = Padding.pick(asked, runner.invariant_from, runner.keeps_states)
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
    runner = runner_of(load_model(spec))
    _prepare(runner, spec, verifies=False)
    validate(runner, spec.name)
    if spec.tokens_of is None:
        return Drafter(runner, spec.name)
    tokenizers = load_tokenizer(spec.tokens_of), load_tokenizer(spec.name)
    translation = VocabularyMap.of(*tokenizers, (spec.tokens_of, spec.name))
    return Drafter(TranslatedRunner(runner, translation.to(runner.device)), spec.name)


def wrap_drafter(model: PreTrainedModel) -> Drafter:
    """A drafter of a model in memory, which is left as it is.

    Raises:
        UnsupportedModelError: as `validate`.
    """
    runner = runner_of(model)
    validate(runner, "draft")
    return Drafter(runner)
