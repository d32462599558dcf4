"""Loading prints nothing, and leaves the user's settings as they were."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging

from specbranch.models import loader
from specbranch.models.loader import ModelSpec, load_model, load_tokenizer
from specbranch.models.quiet import quiet


@pytest.fixture(params=[True, False], ids=["bars", "no bars"])
def bars(request: pytest.FixtureRequest) -> Iterator[bool]:
    """The user's setting, and a verbosity of hers."""
    level, before = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_info()
    switch(request.param)
    yield request.param
    transformers_logging.set_verbosity(level)
    switch(before)


def switch(shown: bool) -> None:
    if shown:
        transformers_logging.enable_progress_bar()
    else:
        transformers_logging.disable_progress_bar()


def test_loading_prints_nothing(
    bars: bool, model_folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_config = loader._load_config

    def warning(*args: Any) -> Any:
        warnings.warn("an option is deprecated", stacklevel=1)
        transformers_logging.get_logger("transformers").warning("an option is unknown")
        return load_config(*args)

    monkeypatch.setattr(loader, "_load_config", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        load_tokenizer(str(model_folder))
        load_model(ModelSpec(str(model_folder), device="cpu"))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == transformers_logging.INFO


def test_settings_come_back_after_an_error(bars: bool) -> None:
    seen = []

    def fail() -> None:
        with quiet():
            seen.append(transformers_logging.is_progress_bar_enabled())
            seen.append(transformers_logging.get_verbosity())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False, transformers_logging.ERROR]
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert transformers_logging.get_verbosity() == transformers_logging.INFO


def test_downloads_keep_their_bars(bars: bool) -> None:
    """If the user has any."""
    with quiet():
        assert are_progress_bars_disabled() != bars
    assert are_progress_bars_disabled() != bars


def test_bars_of_downloads_that_the_user_switched_off_stay_off() -> None:
    transformers_logging.enable_progress_bar()
    disable_progress_bars()
    with quiet():
        assert are_progress_bars_disabled()
    assert are_progress_bars_disabled()
    assert transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
