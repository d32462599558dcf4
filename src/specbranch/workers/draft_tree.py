"""What the draft executor knows of a text: its tokens, the chain, and the tree of branches."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor
from transformers import LogitsProcessorList

from specbranch.policy.ngram import NgramIndex
from specbranch.sampling.samplers import Sampler
from specbranch.sampling_params import SamplingParams


@dataclass
class Path:
    """A branch as it grows: tokens, and the logits after each that was run.

    Attributes:
        fork: tokens of the text before it.
        accepted: how many of them are the chain's.
        reach: estimated probability that the target writes all its tokens.
        retrieved: its continuation is from earlier in the text, and was not run.
        confidences, log_q: at the place of each token but the first, the candidate.
    """

    id: int
    fork: int
    accepted: int
    reach: float
    tokens: list[int]
    retrieved: bool = False
    confidences: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    log_q: list[Tensor] = field(default_factory=list)


@dataclass
class Drafted:
    """The chain that is being verified.

    Attributes:
        start: tokens of the text before it.
        retrieved: from earlier in the text.
        confidences, log_q: at the place of each of its tokens; log_q is ``[vocabulary]``, and of a
            retrieved chain not there before the draft has read it.
    """

    start: int
    retrieved: bool = False
    confidences: list[float] = field(default_factory=list)
    log_q: list[Tensor] = field(default_factory=list)

    def cut(self, length: int) -> None:
        """Forget the tokens that are not among the text's first `length`."""
        keep = max(0, length - self.start)
        del self.confidences[keep:], self.log_q[keep:]


@dataclass
class Text:
    """A sequence as the draft knows it.

    Attributes:
        tokens: committed text and chain. The cache may lag behind them.
        vocabulary: the target's number of logits.
        logits: raw logits ``[vocabulary]`` after the tokens of the given count, where known.
        branches: the last branch stage's.
        retrieval: from the committed text.
    """

    tokens: list[int]
    params: SamplingParams
    sampler: Sampler
    processors: LogitsProcessorList
    stop_ids: frozenset[int]
    vocabulary: int
    chain: Drafted
    retrieval: NgramIndex
    logits: dict[int, Tensor] = field(default_factory=dict)
    branches: list[Path] = field(default_factory=list)

    @property
    def sends_log_q(self) -> bool:
        return not (self.params.greedy or self.params.coupled)
