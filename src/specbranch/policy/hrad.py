"""H-RAD, the predictor of how much of the next draft to keep (SpecBranch §5).

Its input is z: the hidden states of the target's last K layers at the last verified position, and
the embedding of the newest committed token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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

FORMAT = 1
KEY = "h-rad"  # in the metadata of a safetensors file
HIDDEN = (256, 64)
STORED = torch.float16  # dtype of the weights in a file
LEAST = 1e-3  # bound of a confidence, as in `signal.logit`


@dataclass(frozen=True)
class RecordingSetup:
    """The pair and the sizes that H-RAD records, and a predictor trained on them, belong to.

    Attributes:
        target, draft: names of the models, as the user gave them.
        target_fingerprint, draft_fingerprint: of their weights.
        gamma: γ, most draft tokens of a round.
        layers: K, number of the target's last layers whose hidden states z contains.
        hidden_size: the target's.
        dtype: of the target's hidden states.
    """

    target: str
    target_fingerprint: str
    draft: str
    draft_fingerprint: str
    gamma: int
    layers: int
    hidden_size: int
    dtype: str

    @classmethod
    def of(cls, target: ModelInfo, draft: ModelInfo, gamma: int, layers: int) -> RecordingSetup:
        """The setup of a pair.

        Raises:
            InputError: the target has fewer layers.
        """
        if layers > target.layers:
            raise InputError(
                f"layers must be {target.layers} or fewer, not {layers}: "
                f"{target.name} has no more than that"
            )
        return cls(
            target.name,
            target.fingerprint,
            draft.name,
            draft.fingerprint,
            gamma,
            layers,
            target.hidden_size,
            target.dtype,
        )

    @property
    def features(self) -> int:
        """Length of z: (K + 1) · hidden_size."""
        return (self.layers + 1) * self.hidden_size


class HRAD(nn.Module):
    """SpecBranch's MLP (→ 256 → 64 → 3 classes), with a second head for single tokens.

    The second head estimates P(token i accepted | all tokens before it accepted) as
    ``sigmoid(offsets(h)[i] + slopes[i] · logit(confidence_i))``, where h are the 64 features of the
    hidden layers.

    Args:
        setting: the pair and the sizes that it belongs to.
        classes: number of classes; other than three only in baselines.
        dropout: probability of dropping a feature in training.

    Attributes:
        mean, std: of the training rows, float32 ``[(K + 1) · hidden_size]``.
        trained: how it was trained and how good it is, as JSON types; empty before training.
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
        """γ, most draft tokens of a round."""
        return self.setting.gamma

    @property
    def layers(self) -> int:
        """K, number of the target's last layers whose hidden states z contains."""
        return self.setting.layers

    def features(self, z: Tensor) -> Tensor:
        """h, float32 ``[…, 64]``, from z, float32 ``[…, (K + 1) · hidden_size]``."""
        standard = F.dropout((z - self.mean) / self.std, self.dropout, self.training)
        found: Tensor = self.trunk(standard)
        return found

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes ``[…, 3]`` and offsets ``[…, γ]``, float32, from z."""
        h = self.features(z)
        return self.classes(h), self.offsets(h)

    def token_scores(self, offsets: Tensor, confidences: Tensor) -> Tensor:
        """Logits of each token's acceptance, float32 ``[n, γ]``: `Signal.acceptance` for rows.

        Args:
            offsets: float32 ``[n, γ]``.
            confidences: of the draft, float32 ``[n, γ]``.
        """
        return offsets + self.slopes * confidences.logit(eps=LEAST)

    @torch.inference_mode()
    def signal(self, z: Tensor) -> Signal:
        """The prediction for the next draft, from z, float32 ``[(K + 1) · hidden_size]``."""
        logits, offsets = self(z)
        keep = Keep(int(logits.argmax()))
        return Signal(keep, tuple(offsets.tolist()), tuple(self.slopes.tolist()))

    def check(self, target: ModelInfo, draft: ModelInfo, gamma: int | None = None) -> None:
        """Refuse a pair or a γ other than those of the training.

        Args:
            target, draft: the pair.
            gamma: γ, if it is fixed.

        Raises:
            InputError: the pair or γ is another one.
        """
        ours = self.setting
        fingerprints = (target.fingerprint, draft.fingerprint)
        if fingerprints != (ours.target_fingerprint, ours.draft_fingerprint):
            raise InputError(
                f"this H-RAD is for {ours.target} with {ours.draft}, not for "
                f"{target.name} with {draft.name}: train one for that pair"
            )
        if gamma is not None and gamma != ours.gamma:
            raise InputError(f"this H-RAD is for gamma {ours.gamma}, not {gamma}")

    def round_weights(self) -> None:
        """Round the weights to the precision of a file."""
        for value in self.parameters():
            value.data = value.data.to(STORED).float()

    def save(self, file: Path) -> None:
        """Write weights (float16; mean and std float32) and metadata to a safetensors file."""
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
        """Read a file that `save` wrote.

        Raises:
            InputError: the file does not exist, or holds no H-RAD predictor of this version.
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
