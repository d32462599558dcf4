"""A draft model behind a vocabulary map: its texts are the target's token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.protocol import DraftRunner
from specbranch.models.restricted_head import NEVER
from specbranch.models.vocabulary_map import VocabularyMap

# Draft tokens that a text may take for each of the target's. One that takes more loses its draft.
WIDEST = 2


class TranslatedRunner:
    """Runs a draft with another tokenizer as if it had the target's.

    A path is a list of ends: the draft's tokens that the target's first n tokens take, by n.

    Args:
        runner: of the draft model.
        vocabulary_map: from the target's tokens to the draft's.

    Attributes:
        vocabulary: tokens of the target's tokenizer.
        positions: most tokens of a text, counted by the draft.
    """

    def __init__(self, runner: DraftRunner, vocabulary_map: VocabularyMap) -> None:
        self._runner = runner
        self._map = vocabulary_map
        self.vocabulary = len(vocabulary_map.reads)
        self.positions = runner.positions
        self._ends: dict[int, list[int]] = {}
        self._branches: dict[int, dict[int, list[int]]] = {}

    def open(self, sequence: int, capacity: int, padding: Padding = NATURAL) -> None:
        """Start an empty sequence that holds at most `capacity` of the target's tokens at once."""
        start = self._map.start
        self._runner.open(sequence, WIDEST * capacity + len(start), padding)
        if start:
            self._runner.prefill(sequence, start)
        self._ends[sequence] = [len(start)]
        self._branches[sequence] = {}

    def close(self, sequence: int) -> None:
        """Forget a sequence, if there is one."""
        self._runner.close(sequence)
        self._ends.pop(sequence, None)
        self._branches.pop(sequence, None)

    def length(self, sequence: int) -> int:
        """Number of the target's tokens of the committed prefix."""
        return len(self._ends[sequence]) - 1

    def prefill(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append tokens to the prefix without their logits."""
        self._runner.prefill(sequence, self._append(sequence, tokens))

    def run_many(self, batch: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """Append tokens to several prefixes; logits ``[n, vocabulary]`` of each."""
        starts = [self._ends[sequence][-1] for sequence, _ in batch]
        rows = self._runner.run_many([(s, self._append(s, tokens)) for s, tokens in batch])
        last = [
            [end - start - 1 for end in self._ends[sequence][-len(tokens) :]]
            for (sequence, tokens), start in zip(batch, starts, strict=True)
        ]
        return [self._scores(logits[n]) for logits, n in zip(rows, last, strict=True)]

    def rewind(self, sequence: int, length: int) -> None:
        """Forget the prefix's tokens after the first `length`, and all branches."""
        ends = self._ends[sequence]
        self._runner.rewind(sequence, ends[length])
        del ends[length + 1 :]
        self._branches[sequence].clear()

    def fork(self, sequence: int, positions: Sequence[int], branch: int | None = None) -> list[int]:
        """Start a branch at each of `positions`; returns their ids."""
        branches = self._branches[sequence]
        ends = self._ends[sequence] if branch is None else branches[branch]
        forked = self._runner.fork(sequence, [ends[n] for n in positions], branch)
        branches |= {i: ends[: n + 1] for i, n in zip(forked, positions, strict=True)}
        return forked

    def step_many(self, batch: Sequence[tuple[int, Mapping[int, int]]]) -> list[Tensor]:
        """Append a token to branches of several sequences; logits ``[n, vocabulary]`` of each.

        A token that takes several of the draft's takes as many steps; all end with the last one.
        """
        reads = [(s, {b: self._map.reads[t] for b, t in tokens.items()}) for s, tokens in batch]
        longest = max(len(ids) for _, tokens in reads for ids in tokens.values())
        rows: list[Tensor] = []
        for left in range(longest, 0, -1):
            now = [(s, {b: t[-left] for b, t in ts.items() if len(t) >= left}) for s, ts in reads]
            rows = self._runner.step_many([(s, tokens) for s, tokens in now if tokens])
        for sequence, tokens in reads:
            for branch, ids in tokens.items():
                ends = self._branches[sequence][branch]
                ends.append(ends[-1] + len(ids))
        return [self._scores(logits) for logits in rows]

    def keep(self, sequence: int, branch: int) -> None:
        """Make a branch's path the prefix."""
        self._runner.keep(sequence, branch)
        self._ends[sequence] = self._branches[sequence][branch]
        self._branches[sequence] = {}

    def cache_size(self, sequence: int) -> CacheSize:
        """What a sequence's cache takes."""
        return self._runner.cache_size(sequence)

    def describe(self, name: str) -> ModelInfo:
        """What the model is; its vocabulary is the target's, of which it drafts a part."""
        shared = len(self._map.shared_target)
        return replace(self._runner.describe(name), vocabulary=self.vocabulary, drafted=shared)

    def _append(self, sequence: int, tokens: Sequence[int]) -> list[int]:
        """The draft's tokens of the target's, whose ends are added to the prefix."""
        ends = self._ends[sequence]
        read: list[int] = []
        for token in tokens:
            ids = self._map.reads[token]
            read += ids
            ends.append(ends[-1] + len(ids))
        self._branches[sequence].clear()
        return read

    def _scores(self, logits: Tensor) -> Tensor:
        """Logits of the target's tokens, from ``[n, draft's vocabulary]``."""
        scores = logits.new_full((len(logits), self.vocabulary), NEVER)
        shared = logits.index_select(-1, self._map.shared_draft)
        return scores.index_copy(-1, self._map.shared_target, shared)
