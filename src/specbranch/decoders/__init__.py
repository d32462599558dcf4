"""Decoding methods: each a loop of rounds over two lanes, one file a method."""

from specbranch.decoders.adaedl import adaedl
from specbranch.decoders.autoregressive import autoregressive
from specbranch.decoders.base import Decoder, Lanes
from specbranch.decoders.lookahead import lookahead
from specbranch.decoders.lookup import lookup
from specbranch.decoders.pearl import pearl
from specbranch.decoders.specbranch import specbranch
from specbranch.decoders.speculative import speculative
from specbranch.errors import InputError
from specbranch.options import DecodingOptions

DECODERS: dict[str, Decoder] = {
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

# Methods that have both lanes work at the same time.
OVERLAPPING = {"pearl", "specbranch"}


def check_method(method: str | None, has_draft: bool) -> None:
    """Refuse what is no method, or needs a draft that is not there; None is the default.

    Raises:
        InputError: saying what would do.
    """
    if method is None:
        return
    if method not in DECODERS:
        raise InputError(f"unknown method '{method}': use {', '.join(DECODERS)}")
    if not has_draft and method not in DRAFTLESS:
        raise InputError(f"the method '{method}' needs a draft model: give one")


__all__ = [
    "DECODERS",
    "DRAFTLESS",
    "OVERLAPPING",
    "Decoder",
    "DecodingOptions",
    "Lanes",
    "check_method",
]
