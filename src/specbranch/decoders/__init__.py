"""Decoding methods: each a loop of rounds over two lanes, one file a method."""

from specbranch.decoders.autoregressive import autoregressive
from specbranch.decoders.base import Decoder, Lanes
from specbranch.decoders.specbranch import specbranch
from specbranch.decoders.speculative import speculative
from specbranch.options import DecodingOptions

DECODERS: dict[str, Decoder] = {
    "autoregressive": autoregressive,
    "speculative": speculative,
    "specbranch": specbranch,
}

# Methods that have both lanes work at the same time.
OVERLAPPING = {"specbranch"}

__all__ = ["DECODERS", "OVERLAPPING", "Decoder", "DecodingOptions", "Lanes"]
