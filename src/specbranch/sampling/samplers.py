"""Samplers: greedy decoding, and Gumbel-max sampling by counter-based noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specbranch.sampling.rng import Stream, gumbel_noise, uniform
from specbranch.sampling_params import SamplingParams


class Sampler(Protocol):
    """The randomness of one text. Draws depend on the position, never on the order of calls."""

    def scores(self, log_probs: Tensor, positions: Sequence[int], stream: Stream) -> Tensor:
        """Rank the vocabulary at n positions: the chosen token has a row's highest score.

        Args:
            log_probs: float32 ``[n, vocabulary]``.
            positions: of the rows in the text.
            stream: which of a position's draws.

        Returns:
            float32 ``[n, vocabulary]``.
        """

    def tokens(self, log_probs: Tensor, positions: Sequence[int], stream: Stream) -> list[int]:
        """A token for each of n positions, from the distributions ``[n, vocabulary]``."""

    def accepts(self, probability: float, position: int) -> bool:
        """True with the given probability."""


class GreedySampler:
    """Always the likeliest token; the lowest id among equals."""

    def scores(self, log_probs: Tensor, positions: Sequence[int], stream: Stream) -> Tensor:
        return log_probs

    def tokens(self, log_probs: Tensor, positions: Sequence[int], stream: Stream) -> list[int]:
        chosen: list[int] = log_probs.argmax(-1).tolist()
        return chosen

    def accepts(self, probability: float, position: int) -> bool:
        raise NotImplementedError("greedy decoding compares tokens, it does not weigh them")


@dataclass(frozen=True)
class GumbelSampler:
    """The argmax of log-probability plus the noise that (seed, position) owns.

    Attributes:
        seed: of the text.
        coupled: whether draft and target share the noise.
    """

    seed: int
    coupled: bool

    def scores(self, log_probs: Tensor, positions: Sequence[int], stream: Stream) -> Tensor:
        owner = Stream.TARGET if self.coupled else stream
        rows = [
            gumbel_noise(self.seed, position, owner, log_probs.shape[-1], log_probs.device)
            for position in positions
        ]
        return log_probs + (torch.stack(rows) if len(rows) > 1 else rows[0])

    def tokens(self, log_probs: Tensor, positions: Sequence[int], stream: Stream) -> list[int]:
        chosen: list[int] = self.scores(log_probs, positions, stream).argmax(-1).tolist()
        return chosen

    def accepts(self, probability: float, position: int) -> bool:
        return uniform(self.seed, position, Stream.ACCEPT) < probability


def make_sampler(params: SamplingParams) -> Sampler:
    """The randomness of these parameters; their seed must be set unless they are greedy."""
    if params.greedy:
        return GreedySampler()
    assert params.seed is not None
    return GumbelSampler(params.seed, params.coupled)
