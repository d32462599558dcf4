"""What the models of an engine are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from specbranch.errors import InputError
from specbranch.models.info import ModelInfo
from specbranch.models.padding import Padding
from specbranch.sampling.grammar import GrammarVocabulary


@dataclass(frozen=True)
class EngineModels:
    """What the models of an engine are.

    Attributes:
        target, draft: None is no draft.
        tokenizer: of both; None where prompts are token ids.
        max_model_len: most tokens of a text, prompt included.
        padding: of the target's forwards.
        hrad: whether the verifier's predictor, if it has one, is this pair's.
        defaults: of sampling, where the generation configuration counts.
    """

    target: ModelInfo
    draft: ModelInfo | None
    tokenizer: Any
    max_model_len: int
    padding: Padding
    hrad: bool = True
    defaults: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def grammar_vocabulary(self) -> GrammarVocabulary:
        """What the grammars of texts have to know.

        Raises:
            InputError: no tokenizer, one of another kind, or nothing ends a text.
        """
        if self.tokenizer is None:
            raise InputError("structured outputs need a tokenizer")
        return GrammarVocabulary.of(self.tokenizer, self.target.vocabulary, self.target.eos_ids)
