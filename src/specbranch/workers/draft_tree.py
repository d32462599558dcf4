"""What the drafter knows of a text: committed prefix, chain, and the tree of branches on them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from specbranch.policy.ngram import NgramIndex
from specbranch.sampling.pipeline import LogitsPipeline
from specbranch.sampling.samplers import Sampler
from specbranch.sampling_params import SamplingParams
from specbranch.workers.messages import CommitUpdate


@dataclass
class BranchState:
    """A branch as it grows.

    Attributes:
        id: of the branch in the runner's cache.
        fork: tokens of the path before it.
        accepted: how many of them are the chain's.
        probability: estimated, that the target writes all its tokens.
        tokens: the candidate and what follows it.
        retrieved: whether the continuation is an n-gram match, which was not run.
        confidences, log_q: at the place of each token after the candidate.
        logits: raw, float32 ``[vocabulary]``, after each token that was run.
    """

    id: int
    fork: int
    accepted: int
    probability: float
    tokens: list[int]
    retrieved: bool = False
    confidences: list[float] = field(default_factory=list)
    log_q: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@dataclass
class ChainState:
    """The chain under verification.

    Attributes:
        start: tokens of the text before it.
        retrieved: whether it is an n-gram match.
        confidences: at the place of each of its tokens.
        log_q: likewise, float32 ``[vocabulary]``. A retrieved chain has none before the draft
            model has read it.
    """

    start: int
    retrieved: bool = False
    confidences: list[float] = field(default_factory=list)
    log_q: list[Tensor] = field(default_factory=list)

    def commit(self, length: int) -> None:
        """Count the text's first `length` tokens as committed."""
        done = max(0, length - self.start)
        self.start += done
        del self.confidences[:done], self.log_q[:done]

    def cut(self, length: int) -> None:
        """Forget the tokens that are not among the text's first `length`."""
        keep = max(0, length - self.start)
        del self.confidences[keep:], self.log_q[keep:]


@dataclass
class DraftTree:
    """A text as the drafter knows it. The runner's cache may lag behind its tokens.

    Attributes:
        id: of the text.
        tokens: the committed prefix and the chain.
        params, pipeline, sampler: how the text is sampled.
        stop_ids: tokens after which nothing is drafted.
        vocabulary: the target's number of logits.
        chain: the end of `tokens` that is under verification.
        ngrams: n-gram index of the committed prefix.
        logits: raw logits ``[vocabulary]`` after the first n tokens, by n, where known.
        branches: of the last branch stage.
        drafted: how many tokens were drafted so far.
    """

    id: int
    tokens: list[int]
    params: SamplingParams
    pipeline: LogitsPipeline
    sampler: Sampler
    stop_ids: frozenset[int]
    vocabulary: int
    chain: ChainState
    ngrams: NgramIndex
    logits: dict[int, Tensor] = field(default_factory=dict)
    branches: list[BranchState] = field(default_factory=list)
    drafted: int = 0

    @property
    def sends_log_q(self) -> bool:
        """Whether the acceptance rule weighs q against p."""
        return not (self.params.greedy or self.params.coupled)

    @property
    def chain_tokens(self) -> list[int]:
        return self.tokens[self.chain.start :]

    def start_chain(self) -> ChainState:
        """Begin an empty chain after the tokens."""
        self.chain = ChainState(len(self.tokens))
        return self.chain

    def apply(self, update: CommitUpdate) -> BranchState | None:
        """Make the valid path the committed prefix and chain; returns the surviving branch.

        The caller keeps that branch in the runner's cache, and rewinds the cache to at most
        `update.length` tokens.
        """
        survivor = None
        if update.survivor is not None:
            survivor = self.branches[update.survivor]
            del self.tokens[survivor.fork :]
            # Logits of the old chain, which may have been longer, belong to another path.
            self.logits = {survivor.fork + n: row for n, row in enumerate(survivor.logits, start=1)}
            self.tokens += survivor.tokens
            self.chain = ChainState(
                survivor.fork + 1, survivor.retrieved, survivor.confidences, survivor.log_q
            )
        self.branches = []
        if update.committed is not None:
            self.chain.commit(update.committed)
        self.chain.cut(update.length)
        del self.tokens[update.length :]
        self.logits = {n: row for n, row in self.logits.items() if n == update.length}
        if update.tokens:  # the old chain ends before them
            self.tokens += update.tokens
            self.start_chain()
        return survivor
