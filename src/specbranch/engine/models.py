"""What the models of an engine are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specbranch.models.info import ModelInfo
from specbranch.models.padding import Padding


@dataclass(frozen=True)
class EngineModels:
    """What the models of an engine are.

    Attributes:
        target, draft: None is no draft.
        tokenizer: of both; None where prompts are token ids.
        max_model_len: most tokens of a text, prompt included.
        padding: of the target's forwards.
        hrad: whether the verifier's predictor, if it has one, is this pair's.
    """

    target: ModelInfo
    draft: ModelInfo | None
    tokenizer: Any
    max_model_len: int
    padding: Padding
    hrad: bool = True
