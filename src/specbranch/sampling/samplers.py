"""Samplers: greedy, and Gumbel-max by counter-based noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from specbranch.sampling_params import SamplingParams


class Sampler(Protocol):
    """The randomness of one request. Draws depend on the position, never on the order of calls."""

    def scores(self, log_probs: Tensor, position: int, stream: str) -> Tensor:
        """Rank the vocabulary, float32 ``[vocabulary]``: the chosen token has the highest score."""

    def token(self, log_probs: Tensor, position: int, stream: str) -> int:
        """A token from the distribution ``[vocabulary]`` for the place `position` of the text."""

    def accepts(self, probability: float, position: int) -> bool:
        """True with the given probability."""


class GreedySampler:
    """Always the likeliest token; the lowest id among equals."""

    def scores(self, log_probs: Tensor, position: int, stream: str) -> Tensor:
        return log_probs

    def token(self, log_probs: Tensor, position: int, stream: str) -> int:
        return int(log_probs.argmax())

    def accepts(self, probability: float, position: int) -> bool:
        raise NotImplementedError("greedy decoding compares tokens, it does not weigh them")


# Streams of the rejection rule: its draws at one position must be independent of each other.
# The coupled rule draws everything from TARGET, which is what couples draft and target.
TARGET, DRAFT, ACCEPT = "target", "draft", "accept"
_STREAMS = {TARGET: 0, DRAFT: 1, ACCEPT: 2}


def _generator(seed: int, position: int, stream: str) -> np.random.Generator:
    counter = [0, 0, position, _STREAMS[stream]]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


@lru_cache(maxsize=256)
def gumbel_noise(seed: int, position: int, stream: str, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 ``[vocabulary]``, a pure function of its arguments."""
    noise = -np.log(_generator(seed, position, stream).standard_exponential(vocabulary))
    return torch.from_numpy(noise.astype(np.float32))


@dataclass(frozen=True)
class GumbelSampler:
    """Gumbel-max sampling: argmax of log-probability plus the noise owned by (seed, position)."""

    seed: int
    coupled: bool

    def scores(self, log_probs: Tensor, position: int, stream: str) -> Tensor:
        owner = TARGET if self.coupled else stream
        noise = gumbel_noise(self.seed, position, owner, log_probs.shape[-1])
        return log_probs + noise.to(log_probs.device)

    def token(self, log_probs: Tensor, position: int, stream: str) -> int:
        return int(self.scores(log_probs, position, stream).argmax())

    def accepts(self, probability: float, position: int) -> bool:
        return bool(_generator(self.seed, position, ACCEPT).random() < probability)


def make_sampler(params: SamplingParams) -> Sampler:
    """The randomness that the parameters ask for; their seed must be set unless they are greedy."""
    if params.greedy:
        return GreedySampler()
    assert params.seed is not None
    return GumbelSampler(params.seed, params.coupled)
