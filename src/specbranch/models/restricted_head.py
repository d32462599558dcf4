"""A draft's head that scores only the tokens that its target writes often.

The head is most of a narrow draft's step: 49,152 rows of it cost twice as much as four layers of
576. A token that cannot be drafted costs a rollback at worst, never a wrong text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specbranch.errors import InputError
from specbranch.models.cpu.blocks import blocks_of, leave_blocks

ENTRY = "draft_token_ids"  # of a draft's configuration, which goes wherever the draft does
# Of tokens without a score: a probability of 0 in every dtype, and finite, so that p log p is 0.
NEVER = -1e4


class RestrictedHead(nn.Module):
    """Logits of some tokens, and `NEVER` for the others.

    Args:
        head: the whole head, ``[vocabulary, hidden]``.
        tokens: those that are scored, int64 ``[tokens]``.
    """

    def __init__(self, head: nn.Linear, tokens: Tensor) -> None:
        super().__init__()
        self.vocabulary, hidden = head.weight.shape
        self.out_features = len(tokens)
        weight = head.weight.detach()[tokens.to(head.weight.device)].clone()
        self.scored = nn.Linear(hidden, len(tokens), bias=False, device="meta")
        self.scored.weight = nn.Parameter(weight, requires_grad=False)
        if (blocks := blocks_of(head)) is not None:
            leave_blocks(self.scored, blocks.rows(tokens))
        self.register_buffer("tokens", tokens.to(weight.device), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Of the tokens that are scored."""
        return self.scored.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits ``[…, vocabulary]`` of hidden states ``[…, hidden]``."""
        scores = self.scored(hidden)
        logits = scores.new_full((*scores.shape[:-1], self.vocabulary), NEVER)
        return logits.index_copy(-1, self.tokens, scores)


def restrict_head(model: PreTrainedModel, name: str) -> None:
    """Restrict a draft's head to the tokens that its configuration names, if any.

    Raises:
        InputError: they are no tokens of the model.
    """
    ids = getattr(model.config, ENTRY, None)
    if ids is None:
        return
    head = model.get_output_embeddings()
    if (
        not isinstance(ids, list)
        or not ids
        or not all(type(token) is int and 0 <= token < len(head.weight) for token in ids)
    ):
        raise InputError(
            f"the configuration of {name} is wrong: '{ENTRY}' must be token ids between 0 and "
            f"{len(head.weight) - 1}"
        )
    if head.bias is not None:
        raise InputError(f"{name} cannot be restricted to some tokens: its head has biases")
    model.set_output_embeddings(RestrictedHead(head, torch.tensor(sorted(set(ids)))))
