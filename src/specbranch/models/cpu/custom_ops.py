"""Custom operators by which compiled forwards multiply with packed weights.

Packed weights are opaque to the compiler. Compiled code knows a layer by its number, and an
operator of a few lines of C++, built once, looks the weights up in the model that the thread runs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from specbranch.models.cpu.blocks import BlockEmbedding, BlockLinear
from specbranch.models.cpu.half import HalfLinear, lacking_rows
from specbranch.models.cpu.int8 import Int8Linear

logger = logging.getLogger("specbranch")

SOURCE = Path(__file__).with_name("custom_ops.cpp")
HEADERS = [Path(__file__).with_name(name) for name in ("attention.h", "blocks.h", "simd.h")]
# By what torch finds in the CPU, so that a folder may be shared by several.
_INSTRUCTIONS = {
    "AVX2": "-mavx2 -mfma -mf16c",
    "AVX512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl",
}
# A product is rounded where the source says so, whatever the function.
_OPTIONS = "-shared -fPIC -std=c++20 -O3 -ffp-contract=off -fopenmp"


def compiler() -> str | None:
    """The command of a C++ compiler; None if there is none."""
    names = (os.environ.get("CXX", ""), "g++", "clang++")
    return next((name for name in names if name and shutil.which(name)), None)


class CompiledLayers:
    """A model's packed layers, for compiled code.

    Args:
        model: after `pack`.
        folder: where the operators' library is kept. It is built there if it is missing or broken.
        compiler: a C++ compiler's command.

    Raises:
        RuntimeError: it cannot be built.
    """

    def __init__(self, model: nn.Module, folder: Path, compiler: str) -> None:
        modules = [*model.modules()]
        halves = [module for module in modules if isinstance(module, HalfLinear)]
        integers = [module for module in modules if isinstance(module, Int8Linear)]
        halves.sort(key=lambda module: module.layer)
        integers.sort(key=lambda module: module.layer)
        blocks = {
            module.packed.number: module.packed
            for module in modules
            if isinstance(module, BlockLinear | BlockEmbedding)
        }
        matrices = [blocks[number] for number in sorted(blocks)]
        self._has_halves = bool(halves)
        self._model: int | None = None
        if halves or integers or matrices:
            load_operators(folder, compiler)
            self._model = torch.ops.specbranch.add_model(
                [layer.packed[0] for layer in halves],
                [tensor for layer in integers for tensor in layer.packed],
                [matrix.bytes for matrix in matrices],
                [matrix.kind for matrix in matrices],
            )
            end = weakref.finalize(self, torch.ops.specbranch.remove_model, self._model)
            end.atexit = False

    def run(self) -> None:
        """Make this model's layers the ones that this thread's compiled code finds."""
        if self._model is not None:
            torch.ops.specbranch.run_model(self._model)

    def lacking_rows(self, rows: int) -> int:
        """As `half.lacking_rows`; 0 where the model has no such layers."""
        return lacking_rows(rows) if self._has_halves else 0


def operators_library(folder: Path) -> Path:
    """The operators' library for this version of torch."""
    texts = [file.read_text() for file in (SOURCE, *HEADERS)]
    about = [torch.__version__, _OPTIONS, _instructions(), *texts]
    digest = hashlib.sha256(" ".join(about).encode()).hexdigest()
    return folder / f"{SOURCE.stem}-{digest[:16]}.so"


def _instructions() -> str:
    return _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), "")


def load_operators(folder: Path, compiler: str) -> None:
    """Load the operators, once in a process; build them if need be.

    Args:
        folder: where their library is kept.
        compiler: a C++ compiler's command.

    Raises:
        RuntimeError: they cannot be built.
        OSError: the folder cannot be written to.
    """
    if hasattr(torch.ops.specbranch, "half_linear"):
        return
    library = operators_library(folder)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        if library.exists():
            logger.warning("%s is broken and is built anew: %s", library, error)
        _build(library, compiler)
        torch.ops.load_library(str(library))
    for name in ("half_linear", "int8_linear", "block_linear"):
        torch.library.register_fake(f"specbranch::{name}", _product)
    torch.library.register_fake("specbranch::block_embedding", _rows)
    torch.library.register_fake("specbranch::attend", _attended)


def _build(library: Path, compiler: str) -> None:
    """Write the operators' library, whole or not at all."""
    torch_folder = Path(torch.__file__).parent
    options = f"{_OPTIONS} {_instructions()} -I{torch_folder / 'include'}"
    links = f"-L{torch_folder / 'lib'} -ltorch_cpu -lc10"
    with TemporaryDirectory(dir=library.parent) as made:
        command = [compiler, *options.split(), str(SOURCE), "-o", f"{made}/made.so"]
        done = subprocess.run([*command, *links.split()], capture_output=True, text=True)
        if done.returncode:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "")
            raise RuntimeError(f"{compiler} cannot build {SOURCE.name}: {reason}")
        Path(made, "made.so").replace(library)


def _product(x: Tensor, layer: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features, dtype=torch.float32)


def _rows(ids: Tensor, layer: int, rows: int, width: int) -> Tensor:
    return ids.new_empty(*ids.shape, width, dtype=torch.float32)


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
