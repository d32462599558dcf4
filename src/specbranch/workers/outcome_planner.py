"""Which outcomes of a verification the drafter prepares for (docs/design.md, outcome branches)."""

from __future__ import annotations

import torch
from torch import Tensor

from specbranch.policy.acceptance import AcceptanceModel
from specbranch.policy.branching import Outcome, branch_count, candidates, outcomes
from specbranch.sampling.rng import Stream
from specbranch.workers.draft_forward import DraftForward
from specbranch.workers.draft_tree import DraftTree
from specbranch.workers.messages import BranchText


class OutcomePlanner:
    """Plans the branches of one text.

    Args:
        acceptance: estimates by the draft's confidence.
    """

    def __init__(self, acceptance: AcceptanceModel) -> None:
        self._acceptance = acceptance

    @staticmethod
    def can_branch(tree: DraftTree, text: BranchText) -> bool:
        """Whether any branch could be of use."""
        if text.branching != "point":
            return text.room >= 1
        drafted = tree.chain_tokens
        ends = bool(drafted) and drafted[-1] in tree.stop_ids
        return len(drafted) < text.room and not ends

    def plan(
        self, tree: DraftTree, text: BranchText, forward: DraftForward, logits: Tensor
    ) -> list[Outcome]:
        """Outcomes to prepare for, likeliest first, of a text that `can_branch`.

        Args:
            tree: the text; the draft model has read its chain.
            logits: raw, float32 ``[vocabulary]``, after the chain.
        """
        chain, drafted, count = tree.chain, tree.chain_tokens, len(tree.tokens)
        ends = bool(drafted) and drafted[-1] in tree.stop_ids
        judged = forward.judge(tree, logits[None], [tree.tokens], [count])
        log_q, [value] = judged.log_q, judged.confidences
        if text.branching == "point":
            [scores] = tree.sampler.scores(log_q, [count], Stream.DRAFT)
            k = branch_count(value, text.k_max)
            return [Outcome(len(drafted), token, share) for token, share in candidates(scores, k)]
        rows = torch.stack([*(row.to(log_q.device) for row in chain.log_q), log_q[0]])
        places = range(chain.start, count + 1)
        scores = tree.sampler.scores(rows, places, Stream.DRAFT)
        coupled = tree.params.coupled
        acceptance = self._acceptance.of_chain(
            text.signal, chain.confidences, chain.retrieved, coupled
        )
        if not tree.sends_log_q:
            # The draft would go on with the best there, which is accepted more often than q says.
            acceptance += self._acceptance.of_draft(text.signal, [value], coupled, len(drafted))
        even = text.branching == "even"
        planned = outcomes(drafted, acceptance, scores, text.k_max, even)
        most = min(text.room, len(drafted)) if ends else text.room
        return [outcome for outcome in planned if outcome.accepted < most]
