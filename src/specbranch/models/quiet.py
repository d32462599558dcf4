"""Loading without what `transformers` prints on the user's terminal."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers.utils import logging as transformers_logging

# `transformers` patches torch's modules while it loads a model, and these settings belong to the
# whole process: two threads would mix them up. One thread may nest them.
_one_at_a_time = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and the progress bars of loading; one thread at a time.

    Downloads from the hub keep their bars, because they may take hours. All settings are the
    user's again afterwards.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        hub_bars = not are_progress_bars_disabled()
        hub = logging.getLogger("huggingface_hub")  # tells of every retry where there is no network
        hub_level = hub.level
        try:
            transformers_logging.set_verbosity_error()
            hub.setLevel(logging.ERROR)
            transformers_logging.disable_progress_bar()
            _set_hub_bars(hub_bars)
            yield
        finally:
            transformers_logging.set_verbosity(level)
            hub.setLevel(hub_level)
            if bars:
                transformers_logging.enable_progress_bar()
            _set_hub_bars(hub_bars)


def _set_hub_bars(shown: bool) -> None:
    """`transformers` switches the hub's bars together with its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where an environment variable has settled it
        (enable_progress_bars if shown else disable_progress_bars)()
