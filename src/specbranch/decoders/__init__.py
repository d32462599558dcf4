"""Decoding methods: each a loop of rounds over two lanes, one file a method."""

from specbranch.decoders.adaedl import adaedl
from specbranch.decoders.autoregressive import autoregressive
from specbranch.decoders.base import Decoder, Lanes
from specbranch.decoders.lookahead import lookahead
from specbranch.decoders.lookup import lookup
from specbranch.decoders.pearl import pearl
from specbranch.decoders.specbranch import specbranch
from specbranch.decoders.speculative import speculative
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

__all__ = ["DECODERS", "DRAFTLESS", "OVERLAPPING", "Decoder", "DecodingOptions", "Lanes"]
