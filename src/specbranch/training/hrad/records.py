"""H-RAD's training data: records of verified drafts, in a folder with one file for each prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from specbranch import __version__
from specbranch.errors import InputError
from specbranch.policy import hrad_loss
from specbranch.policy.hrad import RecordingSetup as RecordingSetup
from specbranch.policy.signal import Keep
from specbranch.sampling_params import SamplingParams

FORMAT = 1


def manifest(setting: RecordingSetup, params: SamplingParams) -> dict[str, Any]:
    """The manifest of a folder of records, as JSON types."""
    left_out = {"extra_processors"}
    sampling = {f.name: getattr(params, f.name) for f in fields(params) if f.name not in left_out}
    made = {"format": FORMAT, "specbranch": __version__, **asdict(setting), "sampling": sampling}
    return json.loads(json.dumps(made))


@dataclass(frozen=True)
class Record:
    """One round of a text: the features before it, the draft, and how much of it was accepted.

    Attributes:
        z: the target's features after the previous verification, float32
            ``[(K + 1) · hidden_size]``.
        confidences: of the draft at each token that it drafted: γ, or fewer where the draft ended
            the text.
        accepted: number of those tokens that the target accepted.
    """

    z: Tensor
    confidences: list[float]
    accepted: int


@dataclass(frozen=True)
class Records:
    """n records as tensors.

    Attributes:
        z: ``[n, (K + 1) · hidden_size]``, in the target's dtype.
        confidences: float32 ``[n, γ]``, 0 where nothing was drafted.
        offered, accepted: number of draft tokens, and of accepted ones, of each record, int64
            ``[n]``.
        prompts: index of the prompt of each record, int64 ``[n]``.
    """

    z: Tensor
    confidences: Tensor
    offered: Tensor
    accepted: Tensor
    prompts: Tensor

    def __len__(self) -> int:
        return len(self.z)

    @property
    def labels(self) -> Tensor:
        """The right signal s (`Keep`) of each record, int64 ``[n]`` (SpecBranch §5).

        A chain that ended the text may have fewer than γ tokens. If all of them were accepted, the
        label is `ALL`, too.
        """
        labels = torch.full_like(self.accepted, Keep.CONFIDENT)
        labels[self.accepted == self.offered] = Keep.ALL
        labels[self.accepted == 0] = Keep.NOTHING
        return labels

    @property
    def survived(self) -> Tensor:
        """Whether each token was accepted, bool ``[n, γ]``."""
        return hrad_loss.survived(self.accepted, self.confidences.shape[1])

    @property
    def tested(self) -> Tensor:
        """Whether each token was tested, bool ``[n, γ]``: all those before it were accepted."""
        return hrad_loss.tested(self.accepted, self.offered, self.confidences.shape[1])

    def select(self, rows: Tensor) -> Records:
        """The records of the given rows, int64 or bool ``[n]``."""
        return Records(*(getattr(self, f.name)[rows] for f in fields(self)))


class Collection:
    """A folder of records: `manifest.json`, and a file for each finished prompt.

    Args:
        folder: created if it does not exist.
        made_by: the `manifest` of the records to be added; None opens the folder to read.

    Attributes:
        folder: as given.
        setting: the setup of its records.

    Raises:
        InputError: the folder holds something else, or records of another setup or sampling.
    """

    def __init__(self, folder: Path, made_by: dict[str, Any] | None = None) -> None:
        self.folder = folder
        file = folder / "manifest.json"
        if made_by is not None and not file.exists():
            self._start(made_by)
        try:
            found = json.loads(file.read_text())
            names = [f.name for f in fields(RecordingSetup)]
            self.setting = RecordingSetup(**{name: found[name] for name in names})
        except OSError:
            raise InputError(f"{folder} holds no records: `specbranch hrad collect` does") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file} is no manifest of H-RAD records") from None
        if made_by is not None:
            self._compare(_flat(found), _flat(made_by))

    def _start(self, made_by: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror}") from None
        if any(self.folder.iterdir()):
            raise InputError(f"{self.folder} holds something else: give a new or an empty folder")
        partial = self.folder / "manifest.partial"
        partial.write_text(json.dumps(made_by, indent=2) + "\n")
        partial.rename(self.folder / "manifest.json")

    def _compare(self, there: dict[str, Any], asked: dict[str, Any]) -> None:
        # The same weights may have several names, and the version is only information.
        names = [n for n in asked if n not in ("target", "draft", "specbranch")]
        differing = [n for n in names if there.get(n) != asked[n]]
        if differing:
            details = ", ".join(f"{n} {there.get(n)} there and {asked[n]} here" for n in differing)
            raise InputError(f"{self.folder} holds other records ({details}): give another folder")

    def has(self, prompt: Sequence[int]) -> bool:
        """Whether the folder has the records of a prompt."""
        return self._file(prompt).exists()

    def add(self, prompt: Sequence[int], source: str, records: Sequence[Record]) -> None:
        """Write the records of a prompt atomically.

        Args:
            prompt: token ids; equal prompts share one file.
            source: where the prompt is from, as information.
            records: of the prompt's text.
        """
        gamma, dtype = self.setting.gamma, getattr(torch, self.setting.dtype)
        confidences = torch.zeros(len(records), gamma)
        z = torch.zeros(len(records), self.setting.features, dtype=dtype)
        for row, record in enumerate(records):
            confidences[row, : len(record.confidences)] = torch.tensor(record.confidences)
            z[row] = record.z.to(dtype)
        tensors = {
            "z": z,
            "confidences": confidences,
            "offered": torch.tensor([len(r.confidences) for r in records], dtype=torch.int64),
            "accepted": torch.tensor([r.accepted for r in records], dtype=torch.int64),
        }
        file = self._file(prompt)
        save_file(tensors, file.with_suffix(".partial"), {"source": source})
        file.with_suffix(".partial").rename(file)

    def load(self) -> tuple[Records, list[str]]:
        """All records, prompt by prompt, and the source of each prompt.

        Raises:
            InputError: there are none, or a file is damaged.
        """
        parts, sources = [], []
        for number, file in enumerate(sorted(self.folder.glob("*.safetensors"))):
            try:
                with safe_open(file, "pt") as opened:
                    found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                    sources.append(opened.metadata()["source"])
                prompts = torch.full_like(found["accepted"], number)
                parts.append(Records(**found, prompts=prompts))
            except (SafetensorError, TypeError, KeyError):
                raise InputError(f"{file} is damaged: delete it and collect again") from None
        if not any(map(len, parts)):
            raise InputError(f"{self.folder} holds no records: collect some first")
        joined = (torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Records))
        return Records(*joined), sources

    def _file(self, prompt: Sequence[int]) -> Path:
        digest = sha256(json.dumps(list(prompt)).encode()).hexdigest()
        return self.folder / f"{digest[:16]}.safetensors"


def _flat(made_by: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in made_by.items() if k != "sampling"} | made_by.get("sampling", {})
