"""What a draft tree's chain and branches are as messages, which share nothing that will change."""

from __future__ import annotations

import torch
from torch import Tensor

from specbranch.policy.acceptance import AcceptanceModel
from specbranch.workers.draft_tree import BranchState, DraftTree
from specbranch.workers.forced_tokens import certain
from specbranch.workers.messages import Branch, Draft


def chain_message(tree: DraftTree, acceptance: AcceptanceModel) -> Draft:
    """The chain of a text, with the acceptance that is estimated of it."""
    chain = tree.chain
    return _message(
        tree, acceptance, tree.chain_tokens, chain.confidences, chain.log_q, chain.retrieved
    )


def branch_message(tree: DraftTree, branch: BranchState, acceptance: AcceptanceModel) -> Branch:
    """A branch, and its continuation."""
    continuation = _message(
        tree, acceptance, branch.tokens[1:], branch.confidences, branch.log_q, branch.retrieved
    )
    return Branch(branch.accepted, branch.tokens[0], continuation)


def _message(
    tree: DraftTree,
    acceptance: AcceptanceModel,
    tokens: list[int],
    confidences: list[float],
    rows: list[Tensor],
    retrieved: bool,
) -> Draft:
    if retrieved and tree.sends_log_q:
        rows = [certain(tree, token) for token in tokens]
    log_q = torch.stack([row.cpu() for row in rows]) if rows and tree.sends_log_q else None
    estimated = acceptance.of_chain(None, confidences, retrieved, tree.params.coupled)
    return Draft([*tokens], [*confidences], estimated, log_q, retrieved)
