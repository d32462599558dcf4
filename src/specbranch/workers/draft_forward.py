"""The draft model's forwards over draft trees, and what they say about the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbranch.models.protocol import DraftRunner
from specbranch.policy.branching import confidence
from specbranch.sampling.rng import Stream
from specbranch.workers.draft_tree import BranchState, DraftTree


@dataclass(frozen=True)
class Judged:
    """What the draft model says at n positions of a text.

    Attributes:
        log_q: float32 ``[n, vocabulary]``.
        confidences: of the draft.
        scores: log q with the noise that the target chooses by, where that is known beforehand.
    """

    log_q: Tensor
    confidences: list[float]
    scores: Tensor | None = None


class DraftForward:
    """Batched forwards of many texts' chains and branches.

    Args:
        runner: the draft model.
        meter: told how many tokens each forward has.
    """

    def __init__(self, runner: DraftRunner, meter: Callable[[int], None]) -> None:
        self._runner = runner
        self._meter = meter

    def next_logits(self, trees: Sequence[DraftTree]) -> list[Tensor]:
        """Raw logits, float32 ``[vocabulary]``, after the last token of each text.

        One forward runs what the caches lack.
        """
        lacking = [tree for tree in trees if len(tree.tokens) not in tree.logits]
        batch = []
        for tree in lacking:
            covered = min(self._runner.length(tree.id), len(tree.tokens) - 1)
            self._runner.rewind(tree.id, covered)
            batch.append((tree.id, self.readable(tree.tokens[covered:])))
        if batch:
            for tree, rows in zip(lacking, self._runner.run_many(batch), strict=True):
                tree.logits[len(tree.tokens)] = self._fit(tree, rows[-1])
            self._meter(sum(len(tokens) for _, tokens in batch))
        return [tree.logits[len(tree.tokens)] for tree in trees]

    def step(self, branches: Sequence[tuple[DraftTree, Sequence[BranchState]]]) -> list[Tensor]:
        """One more token of each branch; raw logits, float32 ``[n, vocabulary]``, for each text."""
        batch = []
        for tree, growing in branches:
            last = self.readable([branch.tokens[-1] for branch in growing])
            batch.append((tree.id, dict(zip((b.id for b in growing), last, strict=True))))
        rows = self._runner.step_many(batch)
        self._meter(sum(len(growing) for _, growing in branches))
        return [self._fit(tree, row) for (tree, _), row in zip(branches, rows, strict=True)]

    def read_chains(self, trees: Sequence[DraftTree]) -> None:
        """Run retrieved chains, for what the draft would have said at their places."""
        for tree in trees:
            chain, count = tree.chain, len(tree.tokens)
            if count in tree.logits:
                continue
            covered = min(self._runner.length(tree.id), chain.start - 1)
            self._runner.rewind(tree.id, covered)
            lacking = self.readable(tree.tokens[covered:])
            [rows] = self._runner.run_many([(tree.id, lacking)])
            self._meter(len(lacking))
            logits = self._fit(tree, rows)
            tree.logits[count] = logits[-1]
            places = range(chain.start, count)
            contexts = [tree.tokens[:place] for place in places]
            ahead = logits[chain.start - covered - 1 : -1]
            chain.log_q = [*self._log_q(tree, ahead, contexts)] if places else []

    def judge(
        self,
        tree: DraftTree,
        logits: Tensor,
        contexts: Sequence[Sequence[int]],
        positions: Sequence[int],
    ) -> Judged:
        """What raw logits ``[n, vocabulary]`` say at n positions of a text.

        With `coupled` sampling the confidence takes in the noise that the target will choose by:
        with it, sampling is greedy decoding.

        Args:
            contexts: the token ids before each position; read only by processors with a history.
        """
        log_q = self._log_q(tree, logits, contexts)
        if tree.params.coupled:
            scores = tree.sampler.scores(log_q, positions, Stream.DRAFT)
            return Judged(log_q, confidence(scores), scores)
        if tree.pipeline.is_identity:
            return Judged(log_q, log_q.amax(-1).exp().tolist())
        return Judged(log_q, confidence(logits))

    @staticmethod
    def choose(tree: DraftTree, judged: Judged, positions: Sequence[int]) -> list[int]:
        """The token to draft at each of n positions of a text."""
        if judged.scores is not None:
            chosen: list[int] = judged.scores.argmax(-1).tolist()
            return chosen
        return tree.sampler.tokens(judged.log_q, positions, Stream.DRAFT)

    def readable(self, tokens: Sequence[int]) -> list[int]:
        """Ids that the draft can read: the target may say one that its vocabulary lacks."""
        return [min(token, self._runner.vocabulary - 1) for token in tokens]

    @staticmethod
    def _log_q(tree: DraftTree, logits: Tensor, contexts: Sequence[Sequence[int]]) -> Tensor:
        if tree.pipeline.is_identity:
            return logits.log_softmax(-1)
        return tree.pipeline.drafting(logits, contexts if tree.pipeline.needs_history else None)

    @staticmethod
    def _fit(tree: DraftTree, logits: Tensor) -> Tensor:
        """Pairs of one tokenizer may pad their vocabularies differently: use the target's size."""
        lacking = tree.vocabulary - logits.shape[-1]
        if lacking > 0:
            return torch.nn.functional.pad(logits, (0, lacking), value=-torch.inf)
        return logits[..., : tree.vocabulary]
