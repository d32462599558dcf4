"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Compiling every model of every test would take hours; `test_compiled.py` is for that.
os.environ["SPECBRANCH_ENFORCE_EAGER"] = "1"

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
