"""What a text has to be: JSON, a choice, or whatever a grammar describes; vLLM's names."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from specbranch.errors import InputError

KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True)
class StructuredOutputsParams:
    """One of these, as in vLLM's `StructuredOutputsParams`.

    Attributes:
        json: a JSON schema, as a dictionary or as text.
        regex: a regular expression that the whole text matches.
        choice: the text is one of these strings.
        grammar: a context-free grammar: EBNF as in llama.cpp's GBNF, or Lark's.
        json_object: true: any JSON object.
        disable_any_whitespace: JSON has no white space but that in strings.
        whitespace_pattern: a regular expression of the white space that JSON may have.

    Raises:
        InputError: none of them, or several, or a value of another type.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InputError(
                f"structured_outputs must have one of {', '.join(KINDS)}, not "
                f"{' and '.join(given) or 'none'}"
            )
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"structured_outputs: {name} must be text, not {value!r}")
        if self.json_object is False:
            raise InputError("structured_outputs: json_object must be True, or left out")
        if self.choice is not None:
            choice = self.choice
            listed = isinstance(choice, Sequence) and not isinstance(choice, str)
            if not listed or not choice or not all(isinstance(c, str) and c for c in choice):
                raise InputError(
                    f"structured_outputs: choice must be a list of strings, not {choice!r}"
                )
        if self.json is not None and not isinstance(self.json, str | Mapping):
            raise InputError(
                f"structured_outputs: json must be a JSON schema, not {self.json!r:.80}"
            )

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def schema(self) -> str:
        """The JSON schema as text."""
        if self.json_object:
            return '{"type": "object"}'
        return self.json if isinstance(self.json, str) else json_module.dumps(self.json)


def as_structured_outputs(given: object) -> StructuredOutputsParams | None:
    """The parameters from what a user gives: themselves, or a dictionary as a request has it.

    Raises:
        InputError: something else, or unknown names.
    """
    if given is None or isinstance(given, StructuredOutputsParams):
        return given
    names = {field.name for field in fields(StructuredOutputsParams)}
    if not isinstance(given, Mapping) or not set(given) <= names:
        raise InputError(
            "structured_outputs must be StructuredOutputsParams, or a dictionary of "
            f"{', '.join(KINDS)}, not {given!r:.80}"
        )
    return StructuredOutputsParams(**given)
