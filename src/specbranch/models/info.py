"""What a model is, and what its cache takes."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from specbranch.models.architecture import context_length
from specbranch.models.cpu.blocks import BlockEmbedding, BlockLinear
from specbranch.models.cpu.half import HalfLinear
from specbranch.models.cpu.int8 import Int8Linear
from specbranch.models.cpu.prepacking import PackedLinear
from specbranch.models.experts import experts_of
from specbranch.models.gguf import FILE_TYPE
from specbranch.models.layer_states import count_states
from specbranch.models.restricted_head import RestrictedHead
from specbranch.models.windows import windows_of


@dataclass(frozen=True)
class ModelInfo:
    """What a model is.

    Attributes:
        name: as given by the user.
        architecture: `transformers`' model type.
        vocabulary: number of logits.
        positions: most tokens of a text.
        eos_ids: tokens that end a text.
        invariant_from: fewest tokens of a forward from which on, and up to `MAX_QUERY_LENGTH`, a
            token's
            logits are bit-identical whatever is run with it (batch-invariant kernels); None if they
            are not known to be.
        any_threads: whether they are, too, with all the threads that the model's executor may get.
        fingerprint: of the weights, by a sample of them; the same in every dtype.
        compiled: whether its short forwards are.
        quantization: of its linear layers, or None.
        stored: how a GGUF file stores its weights, such as ``Q4_1``; None for other checkpoints.
        matrices: how many weight matrices the model has, and how many of them are computed with as
            the file stores them, in blocks.
        sampling_defaults: of the checkpoint's generation configuration, by `SamplingParams`' names.
        drafted: tokens that it can draft, where they are not all of the vocabulary.
        states: some layers are recurrent or convolutional.
        found: attention windows, states and experts of its layers, for people.
    """

    name: str
    architecture: str
    parameters: int
    layers: int
    hidden_size: int
    dtype: str
    device: str
    vocabulary: int
    positions: int
    eos_ids: frozenset[int]
    invariant_from: int | None = None
    any_threads: bool = True
    fingerprint: str = ""
    compiled: bool = False
    quantization: str | None = None
    stored: str | None = None
    matrices: tuple[int, int] = (0, 0)
    drafted: int | None = None
    sampling_defaults: tuple[tuple[str, float], ...] = ()
    states: bool = False
    found: str = ""

    @property
    def how(self) -> str:
        """In what numbers, where and in what way it runs, for people."""
        numbers, (all_of_them, in_blocks) = self._numbers, self.matrices
        if self.stored and in_blocks == all_of_them > 0:
            numbers = f"{self.stored} blocks, computed in {numbers},"
        elif self.stored and in_blocks:
            numbers = (
                f"{self.stored} weights, {in_blocks} of {all_of_them} matrices in their blocks, "
                f"computed in {numbers},"
            )
        elif self.stored:
            numbers = f"{self.stored} weights in {numbers}"
        return f"{numbers} on {self.device}, {'compiled' if self.compiled else 'eager'}"

    @property
    def _numbers(self) -> str:
        return f"{self.quantization} layers, {self.dtype}" if self.quantization else self.dtype


@dataclass(frozen=True)
class CacheSize:
    """Bytes of a sequence's keys and values, as they are stored.

    Attributes:
        token: of one token, in all layers.
        branches: of what the branches do not share with the prefix, tokens of branches that ended
            included.
        allocated: set aside for everything.
    """

    token: int
    branches: int
    allocated: int


def describe(model: PreTrainedModel, name: str) -> ModelInfo:
    """What a model tells of itself.

    Args:
        model: a causal LM.
        name: as given by the user.
    """
    config, generation = model.config.get_text_config(), model.generation_config
    head = model.get_output_embeddings()
    context = context_length(config)
    states, windows = count_states(config), windows_of(config, context)
    found = [
        str(windows),
        f"states in {states} of {len(windows.kinds)} layers" if states else "",
        str(experts_of(config) or ""),
    ]
    eos = generation.eos_token_id if generation is not None else None
    return ModelInfo(
        name,
        config.model_type,
        model.num_parameters(),
        config.num_hidden_layers,
        config.hidden_size,
        str(model.dtype).removeprefix("torch."),
        str(model.device),
        config.vocab_size,
        context or 0,
        frozenset([] if eos is None else eos if isinstance(eos, list) else [eos]),
        fingerprint=_fingerprint(model, config.vocab_size),
        stored=getattr(config, FILE_TYPE, None),
        matrices=_matrices(model),
        drafted=head.out_features if isinstance(head, RestrictedHead) else None,
        sampling_defaults=_sampling_defaults(generation),
        found=", ".join(part for part in found if part),
    )


def device_of(model: PreTrainedModel, table: nn.Module) -> torch.device:
    """Where an embedding table takes its tokens; a sharded model is on several devices."""
    weight = getattr(table, "weight", None)
    return weight.device if isinstance(weight, torch.Tensor) else model.device


def _matrices(model: PreTrainedModel) -> tuple[int, int]:
    blocks = sum(isinstance(module, BlockLinear | BlockEmbedding) for module in model.modules())
    others = (nn.Linear, nn.Embedding, HalfLinear, Int8Linear, PackedLinear)
    return blocks + sum(isinstance(module, others) for module in model.modules()), blocks


def _sampling_defaults(generation: GenerationConfig | None) -> tuple[tuple[str, float], ...]:
    """What a generation configuration says of sampling; `do_sample` false is temperature 0."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {} if generation is None else generation.to_diff_dict()
    found = {name: given[name] for name in names if isinstance(given.get(name), int | float)}
    if not given.get("do_sample"):
        found.pop("temperature", None)
    elif "temperature" not in found:
        found["temperature"] = 1.0
    return tuple(found.items())


@torch.inference_mode()
def _fingerprint(model: PreTrainedModel, vocabulary: int) -> str:
    """A hash of some embeddings, in bfloat16, so that it does not depend on the dtype here."""
    table = model.get_input_embeddings()
    tokens = torch.arange(min(64, vocabulary), device=device_of(model, table))
    sample = table(tokens).to(torch.bfloat16)
    return sha256(sample.view(torch.int16).cpu().numpy().tobytes()).hexdigest()[:16]
