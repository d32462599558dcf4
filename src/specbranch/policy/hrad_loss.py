"""The loss of H-RAD's second head, which offline and online training share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from specbranch.policy.hrad import HRAD

# Strong regularisation: there are a few thousand rows of thousands of features.
DROPOUT = 0.8
WEIGHT_DECAY = 0.1


def survived(accepted: Tensor, gamma: int) -> Tensor:
    """Whether each draft token was accepted, bool ``[n, γ]``.

    Args:
        accepted: number of accepted tokens of each round, int64 ``[n]``.
        gamma: γ.
    """
    return torch.arange(gamma, device=accepted.device) < accepted[:, None]


def tested(accepted: Tensor, offered: Tensor, gamma: int) -> Tensor:
    """Whether each draft token was tested, bool ``[n, γ]``: all those before it were accepted.

    Args:
        accepted: number of accepted tokens of each round, int64 ``[n]``.
        offered: number of draft tokens of each round, int64 ``[n]``.
        gamma: γ.
    """
    positions = torch.arange(gamma, device=accepted.device)
    return (positions <= accepted[:, None]) & (positions < offered[:, None])


def token_loss(
    model: HRAD, offsets: Tensor, confidences: Tensor, offered: Tensor, accepted: Tensor
) -> Tensor:
    """Binary cross-entropy of the acceptance of the tokens that were tested; a scalar.

    Args:
        model: the predictor.
        offsets: its second head's output, float32 ``[n, γ]``.
        confidences: of the draft, float32 ``[n, γ]``.
        offered, accepted: number of draft tokens, and of accepted ones, of each round, int64
            ``[n]``.
    """
    gamma = confidences.shape[1]
    mask = tested(accepted, offered, gamma)
    scores = model.token_scores(offsets, confidences)[mask]
    return F.binary_cross_entropy_with_logits(scores, survived(accepted, gamma)[mask].float())
