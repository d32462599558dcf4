"""Fixtures of the executors' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from specbranch.executors.process import ProcessExecutor
from specbranch.models.loader import load_tokenizer
from specbranch.zoo import BUNDLED
from tests.integration.executor_workers import CPUS, Echo
from tests.tiny import save_pair_half, tiny_model


@pytest.fixture
def process() -> Iterator[ProcessExecutor[Echo]]:
    executor = ProcessExecutor(Echo, "draft", CPUS, timeout=30)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A tiny pair under the bundled pair's names, with its tokenizer, in this process.

    Other processes find it by the names of its folders. For tests of what surrounds the models: a
    forward of the bundled target takes fifty times as long.
    """
    folder, tokenizer = tmp_path_factory.mktemp("pair"), load_tokenizer("target")
    with pytest.MonkeyPatch.context() as patch:
        for name, noise in (("target", 0.0), ("draft", 0.005), ("draft-weak", 0.02)):
            model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for weight in model.parameters():
                    weight += noise * torch.randn(weight.shape, generator=generator)
            patch.setitem(BUNDLED, name, save_pair_half(folder / name, model, tokenizer))
        yield str(BUNDLED["target"]), str(BUNDLED["draft"])
