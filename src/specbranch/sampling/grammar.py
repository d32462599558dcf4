"""Grammars: which tokens may come next along a path, by llguidance's parser.

llguidance (MIT) makes the masks. Here are the paths: a text's rows belong to places along a chain
and along branches, so the parser goes back to where a path parts from the last one, and forward
along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from specbranch.errors import InputError
from specbranch.sampling.processors import ByRow
from specbranch.structured_outputs import StructuredOutputsParams


@dataclass(frozen=True)
class GrammarVocabulary:
    """What a grammar has to know of a model; it can be sent to another process.

    Attributes:
        tokenizer: the tokenizer's JSON.
        size: number of logits, or of the tokenizer's tokens if there are more.
        end_ids: tokens that end a text.
    """

    tokenizer: str
    size: int
    end_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, logits: int, end_ids: frozenset[int]) -> GrammarVocabulary:
        """From a tokenizer of `transformers`.

        Args:
            tokenizer: with a backend of `tokenizers`.
            logits: of the target.
            end_ids: of the target; without any, the tokenizer's.

        Raises:
            InputError: no such tokenizer, or nothing that ends a text.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError("structured outputs need a tokenizer of the tokenizers library")
        ends = end_ids or {token for token in [tokenizer.eos_token_id] if token is not None}
        if not ends:
            raise InputError("structured outputs need a model with an end-of-text token")
        plain = copy(backend)
        plain.no_padding()
        plain.no_truncation()
        return cls(plain.to_str(), max(logits, len(tokenizer)), tuple(sorted(ends)))


@lru_cache(maxsize=8)
def _parser_vocabulary(vocabulary: GrammarVocabulary) -> llguidance.LLTokenizer:
    """Shared by all texts of a process; for a large vocabulary it takes a second."""
    try:
        return llguidance.LLTokenizer(
            vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=list(vocabulary.end_ids)
        )
    except Exception as error:  # a tokenizer that llguidance cannot read
        raise InputError(f"no structured outputs with this tokenizer: {_line(error)}") from None


def compile_grammar(params: StructuredOutputsParams, vocabulary: GrammarVocabulary) -> str:
    """A grammar in llguidance's own form.

    Raises:
        InputError: it is none; one line says what is wrong.
    """
    try:
        grammar = _source(params)
        complaint = llguidance.LLMatcher.validate_grammar(grammar, _parser_vocabulary(vocabulary))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        complaint = str(error)
    if complaint and not complaint.startswith("WARNING"):
        raise InputError(f"structured_outputs: bad {params.kind}: {_line(complaint)}")
    return grammar


def _source(params: StructuredOutputsParams) -> str:
    matcher = llguidance.LLMatcher
    if params.kind in ("json", "json_object"):
        options: dict[str, Any] = {"whitespace_flexible": not params.disable_any_whitespace}
        if params.whitespace_pattern is not None:
            options["whitespace_pattern"] = params.whitespace_pattern
        return matcher.grammar_from_json_schema(params.schema, overrides=options)  # type: ignore[arg-type]
    if params.regex is not None:
        return matcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        return llguidance.grammar_from("choice", list(params.choice))  # type: ignore[arg-type]
    assert params.grammar is not None
    return llguidance.grammar_from("ebnf", params.grammar)


def _line(error: object) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:200]


class GrammarPath:
    """A grammar's parser, wherever on a text's paths it is asked for.

    Args:
        vocabulary: of the target.
        grammar: of `compile_grammar`.
    """

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str) -> None:
        self._matcher = llguidance.LLMatcher(_parser_vocabulary(vocabulary), grammar)
        self._end_ids = frozenset(vocabulary.end_ids)
        self._path: list[int] = []

    def _go(self, path: Sequence[int]) -> bool:
        """Move to the end of a path; false if it leaves the grammar, or the text ends within it."""
        tokens = list(path)
        common = min(len(tokens), len(self._path))
        while self._path[:common] != tokens[:common]:  # paths part near their ends
            common -= 1
        if common < len(self._path):
            self._matcher.rollback(len(self._path) - common)
            del self._path[common:]
        rest = tokens[common:]
        if not self._end_ids.isdisjoint(rest):
            return False
        valid = self._matcher.validate_tokens(rest) if rest else 0
        if valid:
            self._matcher.consume_tokens(rest[:valid])
            self._path += rest[:valid]
        return valid == len(rest)

    def allowed(self, path: Sequence[int], size: int) -> Tensor | None:
        """Which tokens may follow the path.

        Args:
            path: generated token ids.
            size: of the vocabulary.

        Returns:
            bool ``[size]``, or None after a path that the grammar does not have.

        Raises:
            InputError: the parser gave up, which happens with huge grammars.
        """
        if not self._go(path):
            return None
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise InputError(f"structured_outputs: {_line(self._matcher.get_error())}")
        mask = np.unpackbits(bits, count=min(size, 8 * len(bits)), bitorder="little")
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(mask)] = torch.from_numpy(mask).bool()
        return allowed

    def forced(self, path: Sequence[int]) -> list[int]:
        """The tokens of the text that must follow the path, as the tokenizer splits it."""
        return self._matcher.compute_ff_tokens() if self._go(path) else []


class GrammarMask(ByRow):
    """Forbids the tokens that the grammar does not have next.

    Where the other parameters forbid all that it has, an end of the text is allowed if it has one:
    there is nothing left to write, whatever `min_tokens` says.

    Args:
        path: of the text.
        end_ids: tokens that end it.
        start: length of the prompt.
    """

    def __init__(self, path: GrammarPath, end_ids: Sequence[int], start: int) -> None:
        self._path = path
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.long)
        self._start = start

    def process(self, history: Sequence[int], row: Tensor) -> Tensor:
        allowed = self._path.allowed(history[self._start :], len(row))
        if allowed is None:  # a place after a rejected token: nothing there counts
            return row
        row[~allowed.to(row.device)] = -torch.inf
        if row.amax() == -torch.inf:
            ends = self._end_ids[allowed[self._end_ids]]
            row[ends.to(row.device)] = 0.0
        return row

    def forced(self, history: Sequence[int]) -> list[int]:
        """Tokens that the grammar leaves no choice about after the tokens `history`."""
        return self._path.forced(history[self._start :])
