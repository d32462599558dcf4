"""Decoding methods: each a loop of rounds over two lanes, one file a method."""

from specbranch.decoders.autoregressive import autoregressive
from specbranch.decoders.base import Decoder, DecodingOptions, Lanes
from specbranch.decoders.specbranch import specbranch
from specbranch.decoders.speculative import speculative

DECODERS: dict[str, Decoder] = {
    "autoregressive": autoregressive,
    "speculative": speculative,
    "specbranch": specbranch,
}

__all__ = ["DECODERS", "Decoder", "DecodingOptions", "Lanes"]
