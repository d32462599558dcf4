"""A causal language model's forward over a static cache, compiled where that pays."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specbranch.models.architecture import context_length
from specbranch.models.cpu.compiled import (
    MOST_ROWS,
    CompiledForward,
    compile_forward,
    library_name,
    obstacle,
)
from specbranch.models.cpu.prepacking import pack
from specbranch.models.experts import experts_of, run_one_by_one
from specbranch.models.info import ModelInfo, describe, device_of
from specbranch.models.kv_cache import StaticKVCache
from specbranch.models.sequence_state import Output
from specbranch.models.windows import AttentionWindows, windows_of

logger = logging.getLogger("specbranch")


class ModelForward:
    """Runs tokens of one sequence over its cache.

    Args:
        model: a causal LM in evaluation mode, with `sdpa` or `eager` attention.

    Attributes:
        keeps_states: some layers are recurrent or convolutional (see `RecurrentRunner`).
    """

    keeps_states = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device: torch.device = model.device
        config = model.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        # 0 where the configuration names no context: `validate` refuses such a model.
        self.positions: int = context_length(config) or 0
        self.windows: AttentionWindows = windows_of(config, context_length(config))
        self.vocabulary: int = config.vocab_size
        self.parameters: int = model.num_parameters()
        self.invariant_from: int | None = None
        self.any_threads = True
        self._additive = config._attn_implementation == "eager"
        taken = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in taken
        # Models without attention have another name for it.
        self._cache_name = "cache_params" if "cache_params" in taken else "past_key_values"
        self._has_experts = experts_of(config) is not None
        self._compiled: CompiledForward | None = None
        self._quantization: str | None = None

    def pack(self, int8: bool = False) -> None:
        """Change the model for faster forwards, if it is on a CPU (see `packing`)."""
        pack(self.model, int8=int8)
        self._quantization = "int8" if int8 else None

    def compile(self, name: str, verifies: bool, int8: bool = False) -> None:
        """Pack the model, and compile its short forwards, where that can be done.

        Args:
            name: of the model, for people.
            verifies: the model is a target: its hidden states will be asked for, and its logits
                are to be the same however many tokens are run with them.
            int8: quantize its linear layers.
        """
        self._quantization = "int8" if int8 else None
        reason = obstacle(self.model)
        if reason is not None:
            logger.info("%s runs uncompiled: %s", name, reason)
            pack(self.model, verifies, int8)
            return
        library = library_name(self.model, int8)
        pack(self.model, verifies, int8)
        self._compiled = compile_forward(self.model, self.windows, name, library, verifies)

    def describe(self, name: str) -> ModelInfo:
        """What the model, called `name` by the user, is."""
        return replace(
            describe(self.model, name),
            parameters=self.parameters,  # packed weights are no parameters any more
            invariant_from=self.invariant_from,
            any_threads=self.any_threads,
            compiled=self._compiled is not None,
            quantization=self._quantization,
            states=self.keeps_states,
        )

    @torch.inference_mode()
    def embeddings(self, tokens: Sequence[int]) -> Tensor:
        """Input embeddings of n tokens, ``[n, hidden_size]``, in the model's dtype."""
        table = self.model.get_input_embeddings()
        found: Tensor = table(torch.tensor(tokens, device=device_of(self.model, table)))
        return found.to(self.device)

    @torch.inference_mode()
    def _forward(
        self,
        kv_cache: StaticKVCache,
        tokens: list[int],
        slots: list[int],
        positions: list[int],
        mask: Tensor,
        layers: int = 0,
        keep: int = 0,
        exact: bool = False,
    ) -> Output:
        """One forward.

        Args:
            mask: bool ``[tokens, extent]``, True where a token sees a slot: its own path, in the
                order of positions. Windows narrow it.
            exact: experts take one token at a time.

        Raises:
            ValueError: the cache has no such slot. Compiled code would write beyond it.
        """
        if max(slots) >= kv_cache.capacity:
            raise ValueError(f"the cache holds {kv_cache.capacity} tokens, and no more")
        if self._compiled is not None and len(tokens) <= MOST_ROWS:
            logits, states = self._compiled(kv_cache, tokens, slots, positions, mask, self.windows)
            return Output(logits, torch.stack(states[-layers:]) if layers else None)
        kv_cache.extent = mask.shape[1]
        masks = [self._as_taken(mask[None, None]) for mask in self.windows.masks(mask)]
        with run_one_by_one(self.model) if exact and self._has_experts else nullcontext():
            out = self._call(
                kv_cache, [tokens], slots, [positions], self.windows.argument(masks), layers, keep
            )
        hidden = torch.stack([h[0] for h in out.hidden_states[-layers:]]) if layers else None
        return Output(out.logits[0].float(), hidden)

    def _as_taken(self, mask: Tensor) -> Tensor:
        """A bool mask on the model's device, as its attention takes it."""
        mask = mask.to(self.device)
        if not self._additive:
            return mask
        low = torch.finfo(self.model.dtype).min
        return torch.where(mask, 0.0, low).to(self.model.dtype)

    def _call(
        self,
        kv_cache: StaticKVCache,
        tokens: list[list[int]],
        slots: list[int],
        positions: list[list[int]],
        masks: Tensor | Mapping[str, Tensor | None] | None,
        layers: int,
        keep: int,
    ) -> Any:
        """The model's own forward over the cache; each row of `tokens` is one of its batch."""
        kv_cache.slots = torch.tensor(slots, device=self.device)
        options: dict[str, Any] = {self._cache_name: kv_cache}
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        return self.model(
            input_ids=torch.tensor(tokens, device=self.device),
            attention_mask=masks,
            position_ids=torch.tensor(positions, device=self.device),
            use_cache=True,
            output_hidden_states=layers > 0,
            **options,
        )
