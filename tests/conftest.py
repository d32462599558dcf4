"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

# Compiling every model of every test would take hours; `test_compiled.py` is for that.
os.environ["SPECBRANCH_ENFORCE_EAGER"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # each of several at a time gets one core's worth
    os.environ["OMP_NUM_THREADS"] = "1"

from tests.forwards import BLOCK
from tests.hook import Drafts, tiny
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A tiny Llama with its tokenizer on disk, as `load` reads it: the test may damage it."""
    folder = tmp_path / "model"
    save_pair_half(folder, tiny_model("llama"), tiny_tokenizer())
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """An interrupt is one here and in child processes, even where a shell started us in the
    background and had it ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    """A cache whose blocks are so short that texts cross their borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specbranch.models.runner.BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return tiny(0)


@pytest.fixture(scope="module")
def drafts(target: PreTrainedModel) -> Drafts:
    return {
        "random": tiny(1),
        "similar": tiny(2, noise_on=target),
        "target": target,
    }


@pytest.fixture(scope="module")
def draft(drafts: Drafts) -> PreTrainedModel:
    return drafts["similar"]
