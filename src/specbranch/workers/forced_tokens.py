"""Draft tokens that take no forward: what the grammar of a text leaves no choice about."""

from __future__ import annotations

import torch
from torch import Tensor

from specbranch.workers.draft_tree import BranchState, DraftTree
from specbranch.workers.messages import BranchText, DraftText

CERTAIN = 1.0  # confidence


def force_chain(tree: DraftTree, text: DraftText) -> None:
    """Continue the chain with forced tokens, as far as chains that take no forward may go."""
    chain = tree.chain
    most = max(text.gamma, text.retrieval) - len(chain.confidences)
    forced = tree.pipeline.forced(tree.tokens)[: max(0, most)]
    tree.tokens += forced
    chain.confidences += [CERTAIN] * len(forced)
    chain.log_q += [certain(tree, token) for token in forced]


def force_branch(tree: DraftTree, branch: BranchState, text: BranchText) -> None:
    """Continue a branch that no longer grows with forced tokens, which are not run."""
    longest = max(text.gamma, text.retrieval) + 1
    most = min(longest, text.room - branch.accepted) - len(branch.tokens)
    if branch.retrieved or most <= 0 or branch.tokens[-1] in tree.stop_ids:
        return
    forced = tree.pipeline.forced(tree.tokens[: branch.fork] + branch.tokens)[:most]
    branch.tokens += forced
    branch.confidences += [CERTAIN] * len(forced)
    branch.log_q += [certain(tree, token) for token in forced]


def certain(tree: DraftTree, token: int) -> Tensor:
    """Log q ``[vocabulary]`` where nothing but `token` could have been drafted."""
    row = torch.full((tree.vocabulary,), -torch.inf)
    return row.index_fill_(0, torch.tensor(token), 0.0)
