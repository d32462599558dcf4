"""What verifier and drafter have in common: a model, and texts that are opened and closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from specbranch.executors.base import Worker
from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.protocol import DraftRunner
from specbranch.sampling.grammar import GrammarVocabulary
from specbranch.workers.messages import OpenText


class TextWorker(Worker, ABC):
    """A worker that holds a model and the caches of the texts that are open on it.

    Args:
        runner: the model.
        name: of the model, as the user gave it.
    """

    def __init__(self, runner: DraftRunner, name: str) -> None:
        self._runner = runner
        self._name = name
        self._vocabulary: GrammarVocabulary | None = None

    def describe(self) -> ModelInfo:
        """What the model is."""
        return self._runner.describe(self._name)

    def cache_size(self, id: int) -> CacheSize:
        """What the text's keys and values take."""
        return self._runner.cache_size(id)

    def set_vocabulary(self, vocabulary: GrammarVocabulary) -> None:
        """Take what the grammars of texts that will be opened have to know."""
        self._vocabulary = vocabulary

    @abstractmethod
    def open(self, texts: Sequence[OpenText]) -> None:
        """Read the prompts, all but the last token of each, into the cache."""

    @abstractmethod
    def close(self, ids: Sequence[int]) -> list[int]:
        """Forget texts, however far they were opened; returns the tokens drafted for each."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was learned from the texts so far."""
