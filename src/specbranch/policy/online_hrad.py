"""H-RAD that starts untrained and learns from the text it is used on (``hrad="online"``).

It learns how likely single tokens are accepted. The paper's class s stays 1: chains are cut before
they show whether all γ tokens would have been accepted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from specbranch.policy.hrad import HRAD
from specbranch.policy.signal import Keep, Signal
from specbranch.training.hrad.records import RecordingSetup, Records
from specbranch.training.hrad.train import DROPOUT, WEIGHT_DECAY, token_loss

GAMMA = 8
LAYERS = 4
LEAST = 64  # rounds to learn from before it says anything
REMEMBERED = 4096  # rounds
BATCH = 32
LEARNING_RATE = 3e-4
FAST = 1e-2  # the same, of what follows from the confidences alone


class OnlineHRAD:
    """A predictor and what it has seen.

    Args:
        setting: what it is for; that of the draft does not matter.
        device: where the features are.
    """

    def __init__(self, setting: RecordingSetup, device: torch.device) -> None:
        self._setting = setting
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Start anew."""
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
        self._standard = LEAST  # rounds after which to measure the features again
        self._random = random.Random(0)

    @property
    def layers(self) -> int:
        """K, of how many of the target's last layers z has the hidden states."""
        return self._setting.layers

    def signal(self, z: Tensor) -> Signal | None:
        """What z, float32 ``[(K + 1) · hidden_size]``, says of the next draft; at first nothing."""
        if len(self._seen) < LEAST:
            return None
        return replace(self._model.eval().signal(z), keep=Keep.CONFIDENT)

    def observe(self, z: Tensor, confidences: Sequence[float], accepted: int) -> None:
        """Take in a round.

        Args:
            z: what was known before it.
            confidences: the draft's, at the place of each token of its chain.
            accepted: how many of those the target accepted.
        """
        if confidences:
            judged = list(confidences[: self._setting.gamma])
            self._seen.append((z, judged, min(accepted, len(judged))))

    def learn(self) -> None:
        """One gradient step, on rounds drawn from all that were seen."""
        if len(self._seen) >= self._standard:
            z = torch.stack([z for z, _, _ in self._seen])
            self._model.mean.copy_(z.mean(0))
            self._model.std.copy_(z.std(0).clamp_min(1e-6))
            self._standard *= 2
        if len(self._seen) < BATCH:
            return
        self._model.train()
        rows = self._rows(self._random.sample(range(len(self._seen)), BATCH))
        _, offsets = self._model(rows.z)
        self._adam.zero_grad()
        token_loss(self._model, offsets, rows).backward()
        self._adam.step()

    def _rows(self, places: Sequence[int]) -> Records:
        found = [self._seen[place] for place in places]
        confidences = torch.zeros(len(found), self._setting.gamma)
        for row, (_, values, _) in enumerate(found):
            confidences[row, : len(values)] = torch.tensor(values)
        return Records(
            torch.stack([z for z, _, _ in found]),
            confidences.to(self._device),
            torch.tensor([len(values) for _, values, _ in found], device=self._device),
            torch.tensor([accepted for _, _, accepted in found], device=self._device),
            torch.tensor(places, device=self._device),
        )
