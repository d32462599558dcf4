"""The drafter: drafts chains, and branches while the target verifies, for many texts at once.

It knows no target. It takes committed token ids and limits, and gives chains and branches. Any
engine can use it, in its own process or behind an executor.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specbranch.models.protocol import DraftRunner
from specbranch.policy.acceptance import AcceptanceModel
from specbranch.policy.branch_budget import allot
from specbranch.policy.latency import LatencyLine
from specbranch.policy.ngram import Match, NgramIndex
from specbranch.sampling.pipeline import LogitsPipeline
from specbranch.sampling.samplers import GreedySampler, make_sampler
from specbranch.workers.branch_stage import BranchStage, Growing
from specbranch.workers.draft_forward import DraftForward
from specbranch.workers.draft_messages import chain_message
from specbranch.workers.draft_tree import BranchState, ChainState, DraftTree
from specbranch.workers.forced_tokens import force_chain
from specbranch.workers.messages import Branch, BranchText, CommitUpdate, Draft, DraftText, OpenText
from specbranch.workers.outcome_planner import OutcomePlanner
from specbranch.workers.text_worker import TextWorker


class Drafter(TextWorker):
    """Holds the draft model and a tree of drafted tokens for each text.

    Args:
        runner: the draft model.
        name: of the model.
    """

    def __init__(self, runner: DraftRunner, name: str = "draft") -> None:
        super().__init__(runner, name)
        self._trees: dict[int, DraftTree] = {}
        self._acceptance = AcceptanceModel()
        self._forward = DraftForward(runner, self._meter)
        self._planner = OutcomePlanner(self._acceptance)

    def _meter(self, tokens: int) -> None:
        self.meter(tokens)  # the hook is set after the worker is made

    def reset(self) -> None:
        """Forget how acceptance followed confidence so far."""
        self._acceptance.reset()

    def open(self, texts: Sequence[OpenText], read: bool = True) -> None:
        """Start texts.

        Args:
            texts: to start.
            read: read the prompts, all but the last token of each, into the cache. Without it the
                caller reads them in parts (`read_on`), or the first forward reads all of them.
        """
        for text in texts:
            params = text.params
            self._runner.open(text.id, text.capacity + text.branch_tokens)
            self._trees[text.id] = DraftTree(
                text.id,
                list(text.prompt),
                params,
                LogitsPipeline.of(params, text.constraints, self._vocabulary),
                GreedySampler() if text.certain else make_sampler(params),
                text.stop_ids,
                text.vocabulary,
                ChainState(len(text.prompt)),
                NgramIndex(text.prompt, self._acceptance.ngram),
            )
            if read:
                self.read_on(text.id, len(text.prompt))

    def read_on(self, id: int, most: int) -> int:
        """Read at most so many further tokens of a committed text into the cache.

        Returns:
            How many tokens are left to read, the last one of the text apart.
        """
        tree, covered = self._trees[id], self._runner.length(id)
        end = tree.chain.start - 1
        if part := tree.tokens[covered : min(end, covered + most)]:
            self._runner.prefill(id, self._forward.readable(part))
            self.meter(len(part))
        return max(0, end - covered - len(part))

    def close(self, ids: Sequence[int]) -> list[int]:
        """Forget texts, however far they were opened; returns the tokens drafted for each."""
        drafted = []
        for id in ids:
            self._runner.close(id)
            tree = self._trees.pop(id, None)
            drafted.append(0 if tree is None else tree.drafted)
        return drafted

    def commit(self, updates: Sequence[tuple[int, CommitUpdate]]) -> None:
        """Take in what became of the drafted tokens of texts."""
        for id, update in updates:
            self._commit(self._trees[id], update)

    def draft(self, texts: Sequence[DraftText]) -> list[Draft]:
        """Draft stage: a chain for each text, as far as its policy would keep it.

        The texts grow together: one batched forward a step over all chains that still grow. Where
        a text repeats itself, its chain is an n-gram match and takes no forward.
        """
        trees = [self._trees[text.id] for text in texts]
        for tree, text in zip(trees, texts, strict=True):
            self._commit(tree, text.update)
            tree.start_chain()
        growing = []
        for tree, text in zip(trees, texts, strict=True):
            force_chain(tree, text)
            forced = len(tree.chain.confidences)
            searched = text.retrieval > 0 and not forced
            match = self._match(tree, [], text.retrieval) if searched else None
            if match is not None:
                tree.chain.retrieved, tree.chain.confidences = True, match.strengths
                tree.tokens += match.tokens
            elif text.gamma > forced:
                growing.append((tree, text))
        while growing:
            rows = self._forward.next_logits([tree for tree, _ in growing])
            growing = [
                (tree, text)
                for (tree, text), row in zip(growing, rows, strict=True)
                if self._extend(tree, text, row)
            ]
        for tree in trees:
            tree.drafted += len(tree.chain.confidences)
        return [chain_message(tree, self._acceptance) for tree in trees]

    def _extend(self, tree: DraftTree, text: DraftText, logits: Tensor) -> bool:
        """Add a token to the chain unless the policy ends it there; whether it goes on."""
        chain, policy = tree.chain, text.policy
        place = [len(tree.tokens)]
        judged = self._forward.judge(tree, logits[None], [tree.tokens], place)
        [log_q], confidences = judged.log_q, chain.confidences + judged.confidences
        coupled = tree.params.coupled
        acceptance = self._acceptance.of_draft(policy.signal, confidences, coupled)
        if policy.kept(acceptance) < len(confidences):
            return False
        if chain.log_q and policy.ends_before(log_q):
            return False
        [token] = self._forward.choose(tree, judged, place)
        chain.confidences = confidences
        chain.log_q.append(log_q)
        tree.tokens.append(token)
        if token in tree.stop_ids:
            return False
        force_chain(tree, text)
        if len(chain.confidences) >= text.gamma:
            return False
        return policy.goes_on(acceptance, self._acceptance.of(coupled).mean)

    def branch(
        self,
        texts: Sequence[BranchText],
        step: LatencyLine | None = None,
        budget: int | None = None,
    ) -> list[list[Branch]]:
        """Branch stage: prepare for outcomes of each text's verification, and go on from each.

        All stop growing when the executor asks for it; see `start_branches`.

        Args:
            texts: what to branch for.
            step: latency of a draft step; the branches that grow are those worth their time.
            budget: most branches over all texts.
        """
        stage = self.start_branches(texts, budget)
        while not self.stopped() and stage.grow(step):
            pass
        return stage.finish()

    def start_branches(self, texts: Sequence[BranchText], budget: int | None = None) -> BranchStage:
        """Start a branch stage, for a caller that lets it grow step by step.

        A branch that an n-gram match continues does not grow. The stage is void for a text once
        anything else is done with that text.

        Args:
            texts: what to branch for.
            budget: most branches over all texts.
        """
        trees = [self._trees[text.id] for text in texts]
        for tree, text in zip(trees, texts, strict=True):
            self._commit(tree, text.update)
        growing = self._fork(trees, texts, budget)
        return BranchStage(trees, texts, growing, self._forward, self._acceptance)

    def _fork(
        self, trees: Sequence[DraftTree], texts: Sequence[BranchText], budget: int | None
    ) -> list[Growing]:
        """Start the branches of every text; returns those that can grow."""
        branching = [
            self._planner.can_branch(tree, text) for tree, text in zip(trees, texts, strict=True)
        ]
        open_ended = [tree for tree, can in zip(trees, branching, strict=True) if can]
        self._forward.read_chains([t for t in open_ended if t.chain.retrieved])
        rows = dict(
            zip(
                [tree.id for tree in open_ended],
                self._forward.next_logits(open_ended) if open_ended else [],
                strict=True,
            )
        )
        planned = [
            self._planner.plan(tree, text, self._forward, rows[tree.id]) if can else []
            for tree, text, can in zip(trees, texts, branching, strict=True)
        ]
        if budget is not None:
            planned = allot(planned, budget)
        growing = []
        for tree, text, outcomes in zip(trees, texts, planned, strict=True):
            start = tree.chain.start
            forks = [start + outcome.accepted for outcome in outcomes]
            ids = self._runner.fork(tree.id, forks)
            tree.branches = [
                BranchState(id, fork, outcome.accepted, outcome.probability, [outcome.token])
                for id, fork, outcome in zip(ids, forks, outcomes, strict=True)
            ]
            growing += [
                (tree, text, branch)
                for branch in tree.branches
                if branch.tokens[0] not in tree.stop_ids
                and branch.accepted + 1 < text.room
                and not self._continue(tree, text, branch)
            ]
        return growing

    def _match(self, tree: DraftTree, more: list[int], most: int) -> Match | None:
        """What the text repeats, if that is as likely to be accepted as what the draft says.

        Args:
            more: tokens after the committed text.
        """
        tree.ngrams.learn(tree.tokens[tree.ngrams.length : tree.chain.start])
        least = self._acceptance.of(tree.params.coupled).mean
        return tree.ngrams.continuation(more, most, least, tree.stop_ids)

    def _continue(self, tree: DraftTree, text: BranchText, branch: BranchState) -> bool:
        """Continue a branch by an n-gram match; whether there was one."""
        if text.retrieval <= 0:
            return False
        more = tree.tokens[tree.chain.start : branch.fork] + branch.tokens
        match = self._match(tree, more, min(text.retrieval, text.room - branch.accepted - 1))
        if match is None:
            return False
        branch.tokens += match.tokens
        branch.confidences = match.strengths
        branch.retrieved = True
        return True

    def _commit(self, tree: DraftTree, update: CommitUpdate) -> None:
        """Apply an update to the tree, the runner's cache and the acceptance model."""
        chain = tree.chain
        if update.survivor is not None:
            self._learn(tree, tree.branches[update.survivor].accepted)
        elif update.tokens:
            self._learn(tree, update.length - chain.start)
        elif update.committed is not None:  # the rest of the chain is still to be tested
            self._learn(tree, update.committed - chain.start, rejected=False)
        survivor = tree.apply(update)
        if survivor is not None:
            self._runner.keep(tree.id, survivor.id)
        self._runner.rewind(tree.id, min(update.length, self._runner.length(tree.id)))

    def _learn(self, tree: DraftTree, accepted: int, rejected: bool = True) -> None:
        """Learn how far a chain was accepted: what follows a rejected token was not tested."""
        if tree.chain.retrieved:
            return
        calibration = self._acceptance.of(tree.params.coupled)
        for i, value in enumerate(tree.chain.confidences[: accepted + rejected]):
            calibration.observe(value, i < accepted)
