"""The typed requests: each names the worker's method that it calls, and so the type of its result.

An executor takes a request and gives a future of its result (`executors.base`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from specbranch.executors.base import Request
from specbranch.logprobs import PlaceLogprobs
from specbranch.models.info import CacheSize, ModelInfo
from specbranch.policy.latency import LatencyLine
from specbranch.policy.signal import Signal
from specbranch.sampling.grammar import GrammarVocabulary
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import (
    Branch,
    BranchText,
    CommitUpdate,
    Draft,
    DraftText,
    OpenText,
    VerifyResult,
    VerifyText,
)
from specbranch.workers.text_worker import TextWorker
from specbranch.workers.verifier import Verifier


@dataclass(frozen=True)
class DescribeRequest(Request[TextWorker, ModelInfo]):
    """What the worker's model is."""

    def run(self, worker: TextWorker) -> ModelInfo:
        return worker.describe()


@dataclass(frozen=True)
class OpenRequest(Request[TextWorker, None]):
    """Read the prompts of texts.

    Attributes:
        texts: to open.
        vocabulary: with the first texts that follow a grammar.
    """

    texts: Sequence[OpenText]
    vocabulary: GrammarVocabulary | None = None

    def run(self, worker: TextWorker) -> None:
        if self.vocabulary is not None:
            worker.set_vocabulary(self.vocabulary)
        worker.open(self.texts)


@dataclass(frozen=True)
class CloseRequest(Request[TextWorker, list[int]]):
    """Forget texts. The result is how many tokens were drafted for each."""

    ids: Sequence[int]

    def run(self, worker: TextWorker) -> list[int]:
        return worker.close(self.ids)


@dataclass(frozen=True)
class CacheSizeRequest(Request[TextWorker, CacheSize]):
    """What the keys and values of a text take."""

    id: int

    def run(self, worker: TextWorker) -> CacheSize:
        return worker.cache_size(self.id)


@dataclass(frozen=True)
class ResetRequest(Request[TextWorker, None]):
    """Forget what was learned from the texts so far."""

    def run(self, worker: TextWorker) -> None:
        worker.reset()


@dataclass(frozen=True)
class CommitRequest(Request[Drafter, None]):
    """Tell the drafter what was committed, where nothing is drafted after it."""

    updates: Sequence[tuple[int, CommitUpdate]]

    def run(self, worker: Drafter) -> None:
        worker.commit(self.updates)


@dataclass(frozen=True)
class DraftRequest(Request[Drafter, list[Draft]]):
    """A draft stage: a chain for each text."""

    texts: Sequence[DraftText]

    def run(self, worker: Drafter) -> list[Draft]:
        return worker.draft(self.texts)


@dataclass(frozen=True)
class BranchRequest(Request[Drafter, list[list[Branch]]]):
    """A branch stage: branches for each text.

    Attributes:
        texts: what to branch for.
        step: latency of a draft step by the number of branches. The branches that grow in each
            step are those that are worth their time. None has all branches grow.
        budget: most branches over all texts; None is the sum of their `k_max`.
    """

    texts: Sequence[BranchText]
    step: LatencyLine | None = None
    budget: int | None = None

    def run(self, worker: Drafter) -> list[list[Branch]]:
        return worker.branch(self.texts, self.step, self.budget)


@dataclass(frozen=True)
class VerifyRequest(Request[Verifier, list[VerifyResult]]):
    """Verify a chain for each text."""

    texts: Sequence[VerifyText]

    def run(self, worker: Verifier) -> list[VerifyResult]:
        return worker.verify(self.texts)


@dataclass(frozen=True)
class PromptLogprobsRequest(Request[Verifier, list[PlaceLogprobs]]):
    """Log-probabilities of the tokens of a text's prompt after the first."""

    id: int

    def run(self, worker: Verifier) -> list[PlaceLogprobs]:
        return worker.prompt_logprobs(self.id)


@dataclass(frozen=True)
class RewindRequest(Request[Verifier, None]):
    """Forget what was committed after the first `length` tokens of a text."""

    id: int
    length: int

    def run(self, worker: Verifier) -> None:
        worker.rewind(self.id, self.length)


@dataclass(frozen=True)
class JudgeRequest(Request[Verifier, list[Signal | None]]):
    """What H-RAD makes of the last verification of each text."""

    ids: Sequence[int]

    def run(self, worker: Verifier) -> list[Signal | None]:
        return worker.judge(self.ids)


@dataclass(frozen=True)
class LearnRequest(Request[Verifier, None]):
    """A gradient step of an online H-RAD, while the verifier has nothing else to do."""

    def run(self, worker: Verifier) -> None:
        worker.learn()


@dataclass(frozen=True)
class WatchRequest(Request[Verifier, None]):
    """Keep the features of every verification of a text, of so many last layers."""

    id: int
    layers: int

    def run(self, worker: Verifier) -> None:
        worker.watch(self.id, self.layers)


@dataclass(frozen=True)
class FeaturesRequest(Request[Verifier, Tensor | None]):
    """The features z after the last verification of a text."""

    id: int

    def run(self, worker: Verifier) -> Tensor | None:
        return worker.features(self.id)
