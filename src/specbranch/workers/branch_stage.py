"""A branch stage: the branches of many texts as they grow, step by step."""

from __future__ import annotations

from collections.abc import Sequence

from specbranch.policy.acceptance import AcceptanceModel
from specbranch.policy.branch_budget import select_growing
from specbranch.policy.latency import LatencyLine
from specbranch.workers.draft_forward import DraftForward
from specbranch.workers.draft_messages import branch_message
from specbranch.workers.draft_tree import BranchState, DraftTree
from specbranch.workers.forced_tokens import force_branch
from specbranch.workers.messages import Branch, BranchText

Growing = tuple[DraftTree, BranchText, BranchState]


class BranchStage:
    """All branches of all texts grow together, in one batched forward a step.

    A branch stops growing at its text's limits, at the first position whose acceptance estimate
    is below its ε, or at a token that ends the text.

    Args:
        trees: the texts, with their branches.
        texts: what they branch for.
        growing: the branches that can grow.
        forward: of the draft model.
        acceptance: estimates by the draft's confidence.
    """

    def __init__(
        self,
        trees: Sequence[DraftTree],
        texts: Sequence[BranchText],
        growing: Sequence[Growing],
        forward: DraftForward,
        acceptance: AcceptanceModel,
    ) -> None:
        self._trees = trees
        self._texts = texts
        self._growing = [*growing]
        self._forward = forward
        self._acceptance = acceptance
        self._steps = 0

    def grow(self, step: LatencyLine | None = None) -> int:
        """Grow the branches by a token each.

        Args:
            step: latency of a draft step. The branches that grow are those worth their time; None
                has all of them grow.

        Returns:
            How many branches were run; 0 if none can grow any more.
        """
        growing = [entry for entry in self._growing if self._steps < entry[1].gamma]
        if not growing:
            return 0
        self._steps += 1
        chosen = select_growing([branch.probability for _, _, branch in growing], step)
        grown = self._grow([growing[i] for i in chosen])
        rest = set(range(len(growing))) - set(chosen)
        self._growing = [growing[i] for i in sorted(rest)] + grown
        return len(chosen)

    def branches(self) -> list[list[Branch]]:
        """The branches of each text as they are now."""
        return [
            [branch_message(tree, branch, self._acceptance) for branch in tree.branches]
            for tree in self._trees
        ]

    def finish(self) -> list[list[Branch]]:
        """End the stage; returns the branches of each text."""
        for tree, text in zip(self._trees, self._texts, strict=True):
            for branch in tree.branches:
                force_branch(tree, branch, text)
            tree.drafted += sum(len(branch.tokens) for branch in tree.branches)
        return self.branches()

    def _grow(self, entries: Sequence[Growing]) -> list[Growing]:
        """One step of these branches; returns those that may go on, in the given order."""
        by_text: dict[int, list[Growing]] = {}
        for entry in entries:
            by_text.setdefault(entry[0].id, []).append(entry)
        groups = [*by_text.values()]
        rows = self._forward.step([(group[0][0], [b for _, _, b in group]) for group in groups])
        going_on = set()
        for group, logits in zip(groups, rows, strict=True):
            tree, text, _ = group[0]
            branches = [branch for _, _, branch in group]
            places = [branch.fork + len(branch.tokens) for branch in branches]
            contexts = [tree.tokens[: b.fork] + b.tokens for b in branches]
            judged = self._forward.judge(tree, logits, contexts, places)
            tokens = self._forward.choose(tree, judged, places)
            for i, (branch, value, token) in enumerate(
                zip(branches, judged.confidences, tokens, strict=True)
            ):
                branch.logits.append(logits[i])
                place = branch.accepted + len(branch.tokens)
                [acceptance] = self._acceptance.of_draft(
                    text.signal, [value], tree.params.coupled, place
                )
                if acceptance < text.epsilon:
                    continue
                branch.tokens.append(token)
                branch.confidences.append(value)
                branch.log_q.append(judged.log_q[i])
                branch.probability *= acceptance
                if token not in tree.stop_ids and branch.accepted + len(branch.tokens) < text.room:
                    going_on.add((tree.id, branch.id))
        return [entry for entry in entries if (entry[0].id, entry[2].id) in going_on]
