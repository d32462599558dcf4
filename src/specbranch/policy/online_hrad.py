"""H-RAD that starts untrained and learns from the text that it is used on (``hrad="online"``).

It learns the acceptance of single tokens. The signal s stays 1 (`Keep.CONFIDENT`), because chains
are cut before they show whether all γ tokens would have been accepted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from specbranch.policy.hrad import HRAD, RecordingSetup
from specbranch.policy.hrad_loss import DROPOUT, WEIGHT_DECAY, token_loss
from specbranch.policy.signal import Keep, Signal

GAMMA = 8
LAYERS = 4
LEAST = 64  # rounds seen before the first prediction
REMEMBERED = 4096  # latest rounds to learn from
BATCH = 32
LEARNING_RATE = 3e-4
FAST = 1e-2  # learning rate of the weights that do not depend on the features


class OnlineHRAD:
    """A predictor, and the rounds that it learns from.

    Args:
        setting: its sizes and its target. The draft in it has no effect.
        device: of the features.
    """

    def __init__(self, setting: RecordingSetup, device: torch.device) -> None:
        self._setting = setting
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Return to the untrained state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = HRAD(self._setting, dropout=DROPOUT).to(self._device)
        nn.init.zeros_(model.offsets.weight)
        fast = [model.offsets.bias, model.slopes]
        slow = [*model.trunk.parameters(), model.offsets.weight]
        groups: list[dict[str, Any]] = [
            {"params": fast, "lr": FAST, "weight_decay": 0.0},
            {"params": slow},
        ]
        self._adam = torch.optim.AdamW(groups, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        self._model = model
        self._seen: deque[tuple[Tensor, list[float], int]] = deque(maxlen=REMEMBERED)
        self._next_standardisation = LEAST  # number of rounds at which mean and std are measured
        self._random = random.Random(0)

    @property
    def layers(self) -> int:
        """K, number of the target's last layers whose hidden states z contains."""
        return self._setting.layers

    def signal(self, z: Tensor) -> Signal | None:
        """The prediction for the next draft; None until enough rounds were seen.

        Args:
            z: the target's features, float32 ``[(K + 1) · hidden_size]``.
        """
        if len(self._seen) < LEAST:
            return None
        return replace(self._model.eval().signal(z), keep=Keep.CONFIDENT)

    def observe(self, z: Tensor, confidences: Sequence[float], accepted: int) -> None:
        """Add a round.

        Args:
            z: the target's features before it, float32 ``[(K + 1) · hidden_size]``.
            confidences: of the draft, at each token of the chain. Only the first γ count.
            accepted: number of those tokens that the target accepted.
        """
        if confidences:
            judged = list(confidences[: self._setting.gamma])
            self._seen.append((z, judged, min(accepted, len(judged))))

    def learn(self) -> None:
        """One gradient step on a batch of random rounds seen so far."""
        if len(self._seen) >= self._next_standardisation:
            z = torch.stack([z for z, _, _ in self._seen])
            self._model.mean.copy_(z.mean(0))
            self._model.std.copy_(z.std(0).clamp_min(1e-6))
            self._next_standardisation *= 2
        if len(self._seen) < BATCH:
            return
        rows = [self._seen[i] for i in self._random.sample(range(len(self._seen)), BATCH)]
        confidences = torch.zeros(BATCH, self._setting.gamma)
        for row, (_, values, _) in enumerate(rows):
            confidences[row, : len(values)] = torch.tensor(values)
        offered = torch.tensor([len(values) for _, values, _ in rows], device=self._device)
        accepted = torch.tensor([count for _, _, count in rows], device=self._device)
        self._model.train()
        _, offsets = self._model(torch.stack([z for z, _, _ in rows]))
        self._adam.zero_grad()
        confidences = confidences.to(self._device)
        token_loss(self._model, offsets, confidences, offered, accepted).backward()
        self._adam.step()
