"""Loading of models and tokenizers: what `transformers` loads, or one line that says why not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specbranch.errors import InputError, SpecBranchError
from specbranch.hardware import gains_by_bfloat16
from specbranch.models.architecture import check_cache
from specbranch.models.cpu.int8 import obstacle as int8_obstacle
from specbranch.models.gguf import FILE_TYPE, gguf_file, is_gguf, late_bar, unpacked
from specbranch.models.memory import free_memory, room_beside, weights_size
from specbranch.models.padding import PaddingOption
from specbranch.models.quiet import quiet
from specbranch.models.restricted_head import ENTRY, restrict_head
from specbranch.zoo import BUNDLED

logger = logging.getLogger("specbranch")

MOST_DIFFERING = 0.1  # share of a draft's tokens that the target may have otherwise
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSpec:
    """Which model to load, and how. It can be sent to the process where the model will run.

    Attributes:
        name: a bundled model's name, a folder, a GGUF file, or a name on the Hugging Face hub.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto` or a `torch` device.
        sharded: spread the layers over all GPUs, and the CPU if need be (`device_map="auto"`).
        beside: another model that will run on the same machine: a sharded one leaves room for it.
        padding: of the target's forwards, as the user gave it.
        eager: run it as `transformers` does, never compiled.
        quantization: `int8`, or None.
        drafts: it is a draft, which may score only some tokens (`restricted_head`). As a target it
            is what `transformers` makes of it.
    """

    name: str
    dtype: str = "auto"
    device: str = "auto"
    sharded: bool = False
    padding: PaddingOption = None
    eager: bool = False
    quantization: str | None = None
    beside: ModelSpec | None = None
    drafts: bool = False


def resolve(name: str) -> str:
    """The folder of a bundled model (`target`, `draft`, `draft-weak`), or the name itself.

    For a GGUF file it is a folder with its configuration and its tokenizer.
    """
    return str(unpacked(gguf_file(name)) if is_gguf(name) else BUNDLED.get(name, name))


def named_device(device: str) -> torch.device:
    """`auto` is the first GPU if there is one. Nothing is allocated on the device.

    Raises:
        InputError: the device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise InputError(f"unknown device '{device}': use cpu, cuda, cuda:1, mps, …") from None
    count = torch.cuda.device_count()
    if picked.type == "cuda" and (picked.index or 0) >= count:
        raise InputError(f"device '{device}' is not here: this machine has {count} CUDA device(s)")
    return picked


def pick_device(device: str) -> torch.device:
    """As `named_device`, after a trial.

    Raises:
        InputError: the device does not exist here, or does not work.
    """
    picked = named_device(device)
    if device == "auto":
        return picked
    try:
        torch.zeros(1, device=picked).item()
    except (RuntimeError, AssertionError):
        raise InputError(f"device '{device}' cannot compute here: use auto or cpu") from None
    return picked


def pick_dtype(dtype: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """`auto` is the checkpoint's own, or float32 where the device gains nothing by bfloat16.

    Every bfloat16 number is a float32 number, so the same weights are computed with, more exactly.

    Raises:
        InputError: an unknown name.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype '{dtype}': use auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    stored = getattr(config.get_text_config(), "dtype", None) or torch.float32
    if stored == torch.bfloat16 and not gains_by_bfloat16(device):
        return torch.float32
    if stored == torch.float16 and device.type == "cpu":
        return torch.float32
    return stored


def check_quantization(spec: ModelSpec, device: torch.device) -> None:
    """Refuse what cannot be quantized.

    Raises:
        InputError: an unknown kind, or the device or the dtype has no kernels for it.
    """
    if spec.quantization is None:
        return
    if spec.quantization != "int8":
        raise InputError(f"unknown quantization '{spec.quantization}': use int8, or leave it out")
    reason = "it is sharded over devices" if spec.sharded else int8_obstacle(device)
    if reason:
        raise InputError(f"{spec.name} cannot be quantized to int8: {reason}")
    if spec.dtype not in ("auto", "float32"):
        raise InputError(f"int8 layers take and give float32: use dtype auto, not {spec.dtype}")


@contextmanager
def _explained(name: str) -> Iterator[str]:
    """Yield the folder or hub name. Whatever loading raises becomes one line that says why."""
    where = str(BUNDLED.get(name, name))
    if name in BUNDLED and not Path(where).is_dir():
        raise InputError(
            f"the bundled model '{name}' is missing from {where}: reinstall specbranch"
        )
    try:
        with quiet():
            yield resolve(name)
    except SpecBranchError:
        raise
    # Files from elsewhere break in more ways than `transformers` and what it calls have names for.
    except Exception as error:
        raise InputError(_why(name, where, error)) from error


def load_model(spec: ModelSpec) -> PreTrainedModel:
    """Load a causal LM in evaluation mode.

    Raises:
        InputError: no such model, its files are broken, or it cannot be quantized as asked.
        UnsupportedModelError: it cannot be decoded losslessly here.
    """
    placed = pick_device(spec.device)
    check_quantization(spec, placed)
    with _explained(spec.name) as where, late_bar():
        config = _load_config(spec.name, where)
        # Attention is `sdpa`, or `eager` where an architecture has nothing else.
        packed = gguf_file(spec.name) if is_gguf(spec.name) else None
        model, report = AutoModelForCausalLM.from_pretrained(
            where if packed is None else packed.parent,
            gguf_file=None if packed is None else packed.name,
            dtype=pick_dtype("float32" if spec.quantization else spec.dtype, config, placed),
            device_map="auto" if spec.sharded else None,
            max_memory=_room(spec) if spec.sharded else None,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        lacking = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
        if lacking:
            raise InputError(
                f"the weights of {spec.name} do not fit its configuration: {len(lacking)} missing "
                f"or of another shape, {min(lacking)} first; copy or download it again"
            )
        if packed is not None:
            # They are ordinary weights now, which may be cast and saved.
            model.is_quantized = False
            model.config.__dict__.pop("quantization_config", None)
            for entry in (FILE_TYPE, ENTRY):
                if hasattr(config, entry):
                    setattr(model.config, entry, getattr(config, entry))
        if spec.drafts:
            restrict_head(model, spec.name)
        return (model if spec.sharded else model.to(placed)).eval()


def _room(spec: ModelSpec) -> dict[int | str, int]:
    """Bytes of each device that a sharded model may fill."""
    reserved: dict[int | str, int] = {}
    if other := spec.beside:
        placed = pick_device(other.device)
        config = _load_config(other.name, resolve(other.name))
        dtype = pick_dtype("float32" if other.quantization else other.dtype, config, placed)
        key = (placed.index or 0) if placed.type == "cuda" else placed.type
        reserved[key] = weights_size(config, dtype)
    return room_beside(free_memory(), reserved)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, after a check of the model's configuration.

    Raises:
        InputError: no such model, or its tokenizer is broken.
        UnsupportedModelError: the model cannot be decoded losslessly.
    """
    with _explained(name) as where:
        _load_config(name, where)
        try:
            return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise
            raise InputError(
                f"the tokenizer of {name} is missing or broken ({one_line(error)}): "
                "copy or download its tokenizer.json again"
            ) from error


def _load_config(name: str, where: str) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    check_cache(config, name)
    return config


def _why(name: str, where: str, error: Exception) -> str:
    first = one_line(error)
    if isinstance(error, SafetensorError):
        return f"the weights of {name} are broken: {first}; copy or download them again"
    if isinstance(error, OSError) and error.errno == 28:
        return f"no space left on the disk while loading {name}"
    if is_gguf(name):
        return f"cannot load {name}: {first}"
    if Path(where).is_file():
        return f"'{name}' is a file: give the model's folder"
    if not Path(where).exists():
        return f"no model '{name}': no such folder, and the hub did not give it ({first})"
    if not (Path(where) / "config.json").exists():
        return f"'{name}' is no model folder: it has no config.json"
    if "trust_remote_code" in str(error):
        return f"cannot load {name}: it brings code of its own, which SpecBranch does not run"
    return f"cannot load {name}: {first}"


def one_line(error: Exception) -> str:
    """What an error says, without what it says on its further lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"no entry {lines[0]}"
    # "Validation error for field 'x':" names the field, and the next line the fault.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def check_vocabularies(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Check that a draft's token ids mean the same to the target.

    A few may differ, such as the special tokens of a base model and of one that is made to talk:
    what the draft proposes by them is not accepted, and no text changes.

    Raises:
        InputError: the tokenizers are not of one kind, so that hardly anything would be accepted.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    differing = sum(ours.get(token) != i for token, i in theirs.items())
    if differing <= MOST_DIFFERING * len(theirs):
        if differing:
            logger.warning(
                f"{differing} of {len(theirs)} tokens of {names[1]} are unknown to {names[0]}, or "
                "under another id: they are drafted in vain"
            )
        return
    raise InputError(
        f"different vocabularies: {names[0]} has {len(ours)} tokens, {names[1]} has "
        f"{len(theirs)}, {differing} of them unknown to the target or under another id; "
        "choose a draft of the target's own family"
    )
