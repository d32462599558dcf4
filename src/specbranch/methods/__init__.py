"""Decoding methods: each a loop of rounds over two executors, one file a method."""

from specbranch.config import SpeculativeConfig
from specbranch.errors import InputError
from specbranch.methods.adaedl import adaedl
from specbranch.methods.autoregressive import autoregressive
from specbranch.methods.base import Decoder, Executors
from specbranch.methods.lookahead import lookahead
from specbranch.methods.lookup import lookup
from specbranch.methods.pearl import pearl
from specbranch.methods.specbranch import specbranch
from specbranch.methods.speculative import speculative

METHODS: dict[str, Decoder] = {
    "autoregressive": autoregressive,
    "lookup": lookup,
    "lookahead": lookahead,
    "speculative": speculative,
    "adaedl": adaedl,
    "pearl": pearl,
    "specbranch": specbranch,
}

# Methods of the target alone.
DRAFTLESS = {"autoregressive", "lookup", "lookahead"}

# Methods that have both executors work at the same time.
OVERLAPPING = {"pearl", "specbranch"}


def check_method(method: str | None, has_draft: bool) -> None:
    """Refuse what is no method, or needs a draft that is not there; None is the default.

    Raises:
        InputError: saying what would do.
    """
    if method is None:
        return
    if method not in METHODS:
        raise InputError(f"unknown method '{method}': use {', '.join(METHODS)}")
    if not has_draft and method not in DRAFTLESS:
        raise InputError(f"the method '{method}' needs a draft model: give one")


__all__ = [
    "DRAFTLESS",
    "METHODS",
    "OVERLAPPING",
    "Decoder",
    "Executors",
    "SpeculativeConfig",
    "check_method",
]
