"""Log-probabilities of tokens, from the model's own logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbranch.logprobs import Logprob, PlaceLogprobs


def logprobs_of(logits: Tensor, tokens: Sequence[int], most: int) -> list[PlaceLogprobs]:
    """How likely a model finds tokens, and its likeliest ones, at n places.

    Args:
        logits: the model's, float32 ``[n, vocabulary]``.
        tokens: the token that stands at each place.
        most: how many of the likeliest; −1 is all of the vocabulary.

    Returns:
        For each place the given token, with vLLM's rank (how many are at least as likely), and then
        the likeliest ones.
    """
    if not tokens:
        return []
    vocabulary = logits.shape[-1]
    log_probs = logits.log_softmax(-1)
    given = torch.tensor(list(tokens), device=logits.device)
    chosen = log_probs.gather(-1, given[:, None])
    ranks = (log_probs >= chosen).sum(-1).tolist()
    best = log_probs.topk(vocabulary if most == -1 else min(most, vocabulary))
    found = []
    for token, value, rank, ids, values in zip(
        tokens,
        chosen[:, 0].tolist(),
        ranks,
        best.indices.tolist(),
        best.values.tolist(),
        strict=True,
    ):
        place = {token: Logprob(value, rank)}
        for i, (other, its) in enumerate(zip(ids, values, strict=True), start=1):
            place[other] = Logprob(its, i)
        found.append(place)
    return found
