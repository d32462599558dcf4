"""A model's forward, compiled ahead of time for this CPU, with no Python between its kernels.

`torch.export` records `transformers`' own forward over the cache, and AOTInductor makes a library
of it that takes any number of tokens. That takes about a minute, once: the libraries are kept in a
folder.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import platform
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from specbranch.cache_folder import cache_folder, prepare_folder
from specbranch.models.cpu.blocks import has_blocks
from specbranch.models.cpu.custom_ops import CompiledLayers, compiler
from specbranch.models.cpu.prepacking import ATTENTION, LEAST_ROWS
from specbranch.models.experts import experts_of
from specbranch.models.kv_cache import StaticKVCache
from specbranch.models.layer_states import has_states
from specbranch.models.loader import one_line
from specbranch.models.windows import AttentionWindows

logger = logging.getLogger("specbranch")

FORMAT = 4
MOST_ROWS = 64  # longer forwards have work enough for their kernels
MOST_PARAMETERS = 500_000_000  # of larger models, reading the weights takes all the time anyway
OPTIONS = {"cpp.dynamic_threads": True, "freezing": True}


def obstacle(model: PreTrainedModel) -> str | None:
    """Why a model is better left uncompiled; None if it is not."""
    if {parameter.device.type for parameter in model.parameters()} != {"cpu"}:
        return "it is not on the CPU"
    if model.num_parameters() > MOST_PARAMETERS:
        return "it is large"
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return "its attention is not sdpa"
    if experts_of(model.config) is not None:
        return "it has experts"
    if has_states(model.config):
        return "it has recurrent layers"
    if compiler() is None:
        return "there is no C++ compiler: install g++ or clang++"
    return None


def library_name(model: PreTrainedModel, int8: bool = False) -> str:
    """The file name for these weights, versions and kind of CPU.

    Packed weights cannot be read, so this is called before `pack`.
    """
    digest = hashlib.sha256()
    about = (
        FORMAT,
        torch.__version__,
        transformers.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        model.dtype,
        int8,
        has_blocks(model),
        model.config.to_json_string(),
    )
    digest.update(repr(about).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return f"{digest.hexdigest()[:32]}.pt2"


class CachedForward(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: PreTrainedModel, windows: AttentionWindows, verifies: bool) -> None:
        super().__init__()
        self.model = model
        self.windows = windows
        self.verifies = verifies

    def forward(
        self,
        ids: Tensor,
        masks: list[Tensor],
        positions: Tensor,
        slots: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits ``[n, vocabulary]``, and a target's hidden states ``[1, n, hidden_size]``.

        Args:
            ids, positions: int64 ``[1, n]``.
            masks: bool ``[1, 1, n, extent]``, as `AttentionWindows.masks` gives them.
            slots: int64 ``[n]``.
            keys, values: of every layer, ``[1, heads, capacity, head_dim]``; written to.
        """
        kv_cache = StaticKVCache.of(keys, values)
        kv_cache.slots, kv_cache.extent = slots, masks[0].shape[-1]
        out = self.model(
            input_ids=ids,
            attention_mask=self.windows.argument(masks),
            position_ids=positions,
            past_key_values=kv_cache,
            use_cache=True,
            output_hidden_states=self.verifies,
        )
        return (out.logits[0].float(), *(out.hidden_states if self.verifies else ()))


class CompiledForward:
    """A compiled library, called as the model would be.

    Args:
        library: its file.
        layers: of the model.
        shape: heads and size of a head in the cache of every layer.
        dtype: of the model.
        least: fewest tokens it takes; fewer are padded with copies of the last one.
    """

    def __init__(
        self,
        library: Path,
        layers: CompiledLayers,
        shape: list[tuple[int, int]],
        dtype: torch.dtype,
        least: int,
    ) -> None:
        # Called as a model is, it parses the form of its arguments anew each time.
        self._run: Any = torch._inductor.aoti_load_package(str(library)).loader.boxed_run
        self._layers = layers
        self._shape = shape
        self._dtype = dtype
        self._least = least

    def __call__(
        self,
        kv_cache: StaticKVCache,
        tokens: list[int],
        slots: list[int],
        positions: list[int],
        mask: Tensor,
        windows: AttentionWindows,
    ) -> tuple[Tensor, list[Tensor]]:
        """One forward of n tokens.

        Args:
            mask: bool ``[n, extent]``, True where a token sees a slot, but for `windows`.

        Returns:
            Logits, float32 ``[n, vocabulary]``, and the hidden states of all layers,
            ``[n, hidden_size]`` each, if they were compiled in.
        """
        kv_cache.allocate(self._shape, self._dtype)
        count = len(tokens)
        rows = max(count, self._least)
        if self._least > 1:  # it matters what a token is run with
            rows += self._layers.lacking_rows(rows)
        if lacking := rows - count:
            # Copies write what the token itself writes.
            tokens, slots, positions = (
                [*row, *[row[-1]] * lacking] for row in (tokens, slots, positions)
            )
            mask = torch.cat([mask, mask[-1:].expand(lacking, -1)])
        self._layers.run()
        ids, at, places = torch.tensor([tokens]), torch.tensor([positions]), torch.tensor(slots)
        masks = windows.masks(mask[None, None])
        logits, *hidden = self._run([ids, *masks, at, places, *kv_cache.keys, *kv_cache.values])
        return logits[:count], [states[0, :count] for states in hidden]


def compile_forward(
    model: PreTrainedModel, windows: AttentionWindows, name: str, library: str, verifies: bool
) -> CompiledForward | None:
    """Compile a model, or load what was compiled before; None, and a warning, where that fails.

    A library that cannot be loaded, because it was cut short for example, is built anew.

    Args:
        model: packed or not.
        windows: of its layers.
        name: of the model, for people.
        library: its `library_name`.
        verifies: as for `CausalRunner.compile`.
    """
    least = LEAST_ROWS if model.config.get_text_config()._attn_implementation == ATTENTION else 1
    try:
        file = cache_folder() / ("target-" * verifies + library)
        prepare_folder(file.parent)
        layers = CompiledLayers(model, file.parent, compiler() or "")
        keys, values = _cache_of(model)

        def load() -> CompiledForward:
            shape = [(key.shape[1], key.shape[3]) for key in keys]
            return CompiledForward(file, layers, shape, model.dtype, least)

        if file.exists():
            try:
                return load()
            except Exception as error:  # torch raises what its archive reader or the linker says
                logger.warning("%s is broken and is built anew: %s", file, one_line(error))
        _build(CachedForward(model, windows, verifies), keys, values, least, name, file)
        return load()
    except Exception as error:  # whatever the compiler stumbles over, the model itself still runs
        logger.warning("%s runs uncompiled, slower: %s", name, one_line(error))
        return None


def _cache_of(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor]]:
    """An empty cache to record a forward with."""
    kv_cache = StaticKVCache(model.config.get_text_config().num_hidden_layers, 96)
    kv_cache.slots, kv_cache.extent = torch.tensor([0]), 1
    with torch.inference_mode(False), torch.no_grad():
        model(
            input_ids=torch.tensor([[1]]),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool),
            position_ids=torch.tensor([[0]]),
            past_key_values=kv_cache,
            use_cache=True,
        )
    return kv_cache.keys, kv_cache.values


def _build(
    forward: CachedForward,
    keys: list[Tensor],
    values: list[Tensor],
    least: int,
    name: str,
    file: Path,
) -> None:
    """Write the library to `file`, whole or not at all.

    Raises:
        OSError: its folder cannot be written to.
    """
    count, extent = 6, 70
    mask = torch.zeros(1, 1, count, extent, dtype=torch.bool)
    mask[..., :10] = True
    masks = [mask.clone() for _ in forward.windows.names]  # inputs that are one are taken for equal
    ids, slots = torch.arange(1, count + 1)[None], torch.arange(10, 10 + count)
    rows = Dim("rows", min=least, max=MOST_ROWS)
    extents, capacity = Dim("extent", min=2), Dim("capacity", min=2)
    caches = [{2: capacity} for _ in keys]
    seen = [{2: rows, 3: extents} for _ in masks]
    shapes = ({1: rows}, seen, {1: rows}, {0: rows}, caches, caches)
    begun = time.perf_counter()
    with TemporaryDirectory(dir=file.parent) as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logger.warning("compiling %s for this CPU, once: about a minute", name)
        example = (ids, masks, ids.clone(), slots, keys, values)
        exported = torch.export.export(forward, example, dynamic_shapes=shapes, strict=False)
        made = torch._inductor.aoti_compile_and_package(
            exported, package_path=f"{folder}/library.pt2", inductor_configs=OPTIONS
        )
        Path(made).replace(file)
    del exported, example
    # The compiler leaves cycles behind; they go now rather than in the middle of a text.
    gc.collect()
    logger.warning("compiled %s in %.0f s", name, time.perf_counter() - begun)
