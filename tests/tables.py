"""Models without a network: next-token logits looked up by the tokens before them.

They implement `CausalRunner`'s interface, so that the decoders and workers can be tested over many
texts, and exhaustively over a small vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from specbranch.config import SpeculativeConfig
from specbranch.engine.driver import Driver
from specbranch.engine.executor_pair import ExecutorPair
from specbranch.executors.inline import InlineExecutor
from specbranch.methods.base import MethodContext
from specbranch.methods.registry import METHODS
from specbranch.metrics import Metrics, Round
from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.protocol import DraftRunner
from specbranch.models.sequence_state import LookaheadRow, Output
from specbranch.models.translated_runner import TranslatedRunner
from specbranch.models.vocabulary_map import VocabularyMap
from specbranch.policy.signal import Keep, Signal
from specbranch.policy.tuning import Tuning
from specbranch.sampling.pipeline import TextConstraints
from specbranch.sampling_params import SamplingParams
from specbranch.timing import Span
from specbranch.token_sequence import TokenSequence
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import OpenText
from specbranch.workers.requests import CloseRequest, OpenRequest
from specbranch.workers.verifier import Verifier

Table = Callable[[tuple[int, ...]], Tensor]


def random_table(seed: int, vocabulary: int, scale: float = 2.0, memory: int = 3) -> Table:
    """Random logits that depend on the last `memory` tokens and on the parity of the length."""

    @cache
    def row(key: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((seed, key)) % 2**31)
        return scale * torch.randn(vocabulary, generator=generator)

    return lambda context: row((len(context) % 2, *context[-memory:]))


def imitation(table: Table, seed: int, vocabulary: int, noise: float) -> Table:
    """A draft that follows `table` up to noise: 0 is the same model, 10 a useless one."""
    other = random_table(seed, vocabulary, scale=1.0)
    return lambda context: table(context) + noise * other(context)


@dataclass
class State:
    prefix: list[int] = field(default_factory=list)
    branches: dict[int, list[int]] = field(default_factory=dict)
    next_branch: int = 0


class TableRunner:
    """`CausalRunner` over a table; counts the forwards and refuses what the real one refuses."""

    def __init__(self, table: Table, vocabulary: int, capacity: int = 10_000) -> None:
        self._table = table
        self.vocabulary = vocabulary
        self._states: dict[int, State] = {}
        self.positions = capacity
        self.forwards = 0
        self.tokens_run = 0

    def open(self, sequence: int, capacity: int, padding: object = None) -> None:
        self._states[sequence] = State()

    def close(self, sequence: int) -> None:
        del self._states[sequence]

    def length(self, sequence: int) -> int:
        return len(self._states[sequence].prefix)

    def prefill(self, sequence: int, tokens: Sequence[int]) -> None:
        self._states[sequence].prefix += tokens

    def run(
        self,
        sequence: int,
        tokens: Sequence[int],
        layers: int = 0,
        lookahead_rows: Sequence[LookaheadRow] = (),
    ) -> Output:
        assert tokens
        self.forwards += 1
        self.tokens_run += len(tokens)
        state = self._states[sequence]
        state.branches.clear()
        rows = []
        seen = (*state.prefix, tokens[0])
        for token in tokens:
            state.prefix.append(token)
            rows.append(self._table(tuple(state.prefix)))
        beside = []
        for lookahead in lookahead_rows:
            path = [lookahead_rows[i].token for i in lookahead.sees] + [lookahead.token]
            assert lookahead.position == len(seen) + len(path) - 1
            beside.append(self._table((*seen, *path)))
        return Output(torch.stack(rows), lookahead_rows=torch.stack(beside) if beside else None)

    def run_many(self, batch: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        rows = [self.run(sequence, tokens).logits for sequence, tokens in batch]
        self.forwards -= len(batch) - 1  # one forward over all
        return rows

    def rewind(self, sequence: int, length: int) -> None:
        state = self._states[sequence]
        assert 0 <= length <= len(state.prefix)
        del state.prefix[length:]
        state.branches.clear()

    def fork(self, sequence: int, positions: Sequence[int], branch: int | None = None) -> list[int]:
        state = self._states[sequence]
        path = state.prefix if branch is None else state.branches[branch]
        forked = []
        for position in positions:
            assert 0 <= position <= len(path)
            state.branches[state.next_branch] = path[:position]
            forked.append(state.next_branch)
            state.next_branch += 1
        return forked

    def step(self, sequence: int, tokens: Mapping[int, int]) -> Tensor:
        self.forwards += 1
        branches = self._states[sequence].branches
        for branch, token in tokens.items():
            branches[branch].append(token)
        return torch.stack([self._table(tuple(branches[b])) for b in tokens])

    def keep(self, sequence: int, branch: int) -> None:
        state = self._states[sequence]
        state.prefix = state.branches[branch]
        state.branches = {}

    def step_many(self, batch: Sequence[tuple[int, Mapping[int, int]]]) -> list[Tensor]:
        rows = [self.step(sequence, tokens) for sequence, tokens in batch]
        self.forwards -= len(batch) - 1
        return rows

    def embeddings(self, tokens: Sequence[int]) -> Tensor:
        raise NotImplementedError("tables have no hidden states")

    def cache_size(self, sequence: int) -> CacheSize:
        return CacheSize(0, 0, 0)

    def describe(self, name: str) -> ModelInfo:
        return ModelInfo(
            name, "table", 0, 1, 1, "float32", "cpu", self.vocabulary, self.positions, frozenset()
        )


class ImpatientDrafter(Drafter):
    """A drafter whose branch stages are told to stop after some steps, as a fast target does."""

    def __init__(self, runner: DraftRunner, seed: int) -> None:
        super().__init__(runner)
        self._random = random.Random(seed)

    @property
    def stopped(self) -> Callable[[], bool]:
        return lambda: self._random.random() < 0.3

    @stopped.setter
    def stopped(self, value: object) -> None:
        """The executor's own is of no interest."""


class MoodyVerifier(Verifier):
    """A verifier whose predictor says one thing or another."""

    def __init__(self, runner: TableRunner, seed: int) -> None:
        super().__init__(runner)
        self._random = random.Random(seed)

    def judge(self, ids: Sequence[int]) -> list[Signal | None]:
        return [self._signal() for _ in ids]

    def _signal(self) -> Signal:
        offsets = tuple(self._random.uniform(-3, 3) for _ in range(4))
        return Signal(self._random.choice([*Keep]), offsets, (1.0,) * 4)


class WhimsicalTuning(Tuning):
    """Drafts beside the target, or in turn, or not, and then looks up what the text repeats.

    Attributes:
        looked_up: tokens that were verified without the draft.
    """

    def __init__(self, options: SpeculativeConfig, seed: int) -> None:
        super().__init__(options)
        self._random = random.Random(seed)
        self.looked_up = 0

    @property
    def paused(self) -> bool:
        return True

    @paused.setter
    def paused(self, value: bool) -> None:
        pass

    def observe_plain(self, verification: Span, tokens: int = 1) -> None:
        super().observe_plain(verification, tokens)
        self.looked_up += sum(verification.forwards) - 1

    @property
    def speculates(self) -> bool:
        return self._random.random() < 0.7

    @property
    def overlaps(self) -> bool:
        return self._random.random() < 0.7


@dataclass
class Decoded:
    """A finished generation over tables."""

    text: TokenSequence
    rounds: list[Round]
    metrics: Metrics
    drafted: int


def decode(
    method: str,
    target: Table,
    draft: Table,
    vocabulary: int,
    params: SamplingParams,
    config: SpeculativeConfig | None = None,
    prompt: Sequence[int] = (0,),
    stop_ids: frozenset[int] = frozenset(),
    ends_text: Callable[[list[int]], bool] = lambda tokens: False,
    draft_vocabulary: int | None = None,
    whims: int | None = None,
    translation: VocabularyMap | None = None,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> Decoded:
    """Run one decoding method over inline executors; the drafter gives its own count of tokens.

    Methods of the target alone get no drafter: what they draft is what the target is given besides
    the last committed token. The others always draft, also where plain decoding would be faster.

    Args:
        whims: a seed of when branch stages are stopped, what the predictor says, and when drafting
            waits for the target or pauses; None is never, nothing, and never.
        translation: from the target's tokens to the draft's, where its vocabulary is another.
    """
    spec = METHODS[method]
    config = replace(config or SpeculativeConfig(), speculate="always")
    readable = draft_vocabulary or vocabulary
    ours, theirs = TableRunner(target, vocabulary), TableRunner(draft, readable)
    verifier = Verifier(ours) if whims is None else MoodyVerifier(ours, whims)
    runner = theirs if translation is None else TranslatedRunner(theirs, translation)
    drafter = Drafter(runner) if whims is None else ImpatientDrafter(runner, whims)
    executors = ExecutorPair(InlineExecutor(lambda: verifier, "target"))
    if spec.needs_draft:
        executors.drafter = InlineExecutor(lambda: drafter, "draft")
    tuning = Tuning(config) if whims is None else WhimsicalTuning(config, whims)
    assert params.max_tokens is not None
    text = TokenSequence(1, list(prompt), params.max_tokens, stop_ids, ends_text)
    most = len(prompt) + params.max_tokens
    constraints = TextConstraints(len(prompt), bad_words, stop_ids)
    opened = OpenText(1, list(prompt), params, most, vocabulary, stop_ids, constraints=constraints)
    opening = OpenRequest([opened])
    executors.verifier.submit(opening).result()
    if executors.drafter is not None:
        executors.drafter.submit(opening).result()
    rounds = [*Driver(executors).rounds(spec.make(MethodContext(text, config, tuning)))]
    metrics = Metrics()
    for done in rounds:
        metrics.add(done)
    if executors.drafter is None:
        return Decoded(text, rounds, metrics, ours.tokens_run - ours.forwards)
    [drafted] = executors.drafter.submit(CloseRequest([1])).result()
    if isinstance(tuning, WhimsicalTuning):
        drafted += tuning.looked_up
    return Decoded(text, rounds, metrics, drafted)
