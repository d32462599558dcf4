"""The predictor: from the target's features to how much of the next draft to keep (DESIGN §4)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from specbranch.errors import InputError
from specbranch.models.info import ModelInfo
from specbranch.policy.signal import Keep, Signal
from specbranch.training.hrad.records import RecordingSetup

FORMAT = 1
KEY = "h-rad"  # of the metadata
HIDDEN = (256, 64)
STORED = torch.float16
LEAST = 1e-3  # the bound of `signal.logit`


class HRAD(nn.Module):
    """The paper's MLP (→ 256 → 64 → 3 classes), and a second head for single tokens.

    That head estimates P(token i accepted | those before it accepted) as
    ``sigmoid(offsets(h)[i] + slopes[i] · logit(confidence_i))``, h being the trunk's 64 numbers.

    Args:
        setting: what it is for.
        classes: number of classes: three, but for comparisons.
        dropout: share of the features left out at random in training.

    Attributes:
        mean, std: of the training rows, float32 ``[(K + 1) · hidden_size]``.
        trained: how, and with what result, as JSON types; empty until it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, setting: RecordingSetup, classes: int = len(Keep), dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.setting = setting
        self.trained: dict[str, Any] = {}
        self.register_buffer("mean", torch.zeros(setting.features))
        self.register_buffer("std", torch.ones(setting.features))
        wide, narrow = HIDDEN
        self.dropout = dropout
        self.trunk = nn.Sequential(
            nn.Linear(setting.features, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU()
        )
        self.classes = nn.Linear(narrow, classes)
        self.offsets = nn.Linear(narrow, setting.gamma)
        self.slopes = nn.Parameter(torch.ones(setting.gamma))

    @property
    def gamma(self) -> int:
        """γ that it is for."""
        return self.setting.gamma

    @property
    def layers(self) -> int:
        """K, of how many of the target's last layers z has the hidden states."""
        return self.setting.layers

    def features(self, z: Tensor) -> Tensor:
        """h, float32 ``[…, 64]``, of z, float32 ``[…, (K + 1) · hidden_size]``."""
        standard = F.dropout((z - self.mean) / self.std, self.dropout, self.training)
        found: Tensor = self.trunk(standard)
        return found

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes ``[…, 3]`` and offsets ``[…, γ]``, float32, of z."""
        h = self.features(z)
        return self.classes(h), self.offsets(h)

    def token_scores(self, offsets: Tensor, confidences: Tensor) -> Tensor:
        """Logits of acceptance of each token, given those before it: `Signal.acceptance` for rows.

        Args:
            offsets: float32 ``[n, γ]``.
            confidences: of the draft, float32 ``[n, γ]``.
        """
        return offsets + self.slopes * confidences.logit(eps=LEAST)

    @torch.inference_mode()
    def signal(self, z: Tensor) -> Signal:
        """What z, float32 ``[(K + 1) · hidden_size]``, says of the next draft."""
        logits, offsets = self(z)
        keep = Keep(int(logits.argmax()))
        return Signal(keep, tuple(offsets.tolist()), tuple(self.slopes.tolist()))

    def check(self, target: ModelInfo, draft: ModelInfo, gamma: int | None = None) -> None:
        """Refuse a pair or a γ that this predictor is not for; None is no γ.

        Raises:
            InputError: saying what it is for.
        """
        ours = self.setting
        prints = (target.fingerprint, draft.fingerprint)
        if prints != (ours.target_fingerprint, ours.draft_fingerprint):
            raise InputError(
                f"this H-RAD is for {ours.target} with {ours.draft}, not for "
                f"{target.name} with {draft.name}: train one for that pair"
            )
        if gamma is not None and gamma != ours.gamma:
            raise InputError(f"this H-RAD is for gamma {ours.gamma}, not {gamma}")

    def round_weights(self) -> None:
        """Make the weights those that a file will hold."""
        for value in self.parameters():
            value.data = value.data.to(STORED).float()

    def save(self, file: Path) -> None:
        """Write weights (float16; the standardisation float32) and metadata as safetensors."""
        tensors = {
            name: value if name in ("mean", "std") else value.to(STORED)
            for name, value in self.state_dict().items()
        }
        metadata = {"format": FORMAT, "setting": asdict(self.setting), "trained": self.trained}
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, file, {KEY: json.dumps(metadata)}
        )

    @classmethod
    def load(cls, file: Path) -> HRAD:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not one of these.
        """
        if not file.is_file():
            raise InputError(f"no H-RAD file {file}: `specbranch hrad train` makes one")
        try:
            with safe_open(file, "pt") as opened:
                metadata: Mapping[str, str] = opened.metadata() or {}
                tensors = {n: opened.get_tensor(n).float() for n in opened.keys()}  # noqa: SIM118
        except SafetensorError:
            raise InputError(f"{file} is no safetensors file") from None
        try:
            found = json.loads(metadata[KEY])
            if found["format"] != FORMAT:
                raise InputError(f"{file} is of another version of H-RAD: train it again")
            loaded = cls(RecordingSetup(**found["setting"]))
            loaded.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file} holds no H-RAD predictor") from None
        loaded.trained = found["trained"]
        return loaded.eval().requires_grad_(False)
