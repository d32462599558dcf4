"""What sampling parameters come to for a text, where prompt and vocabulary decide."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specbranch.engine.models import EngineModels
from specbranch.errors import InputError
from specbranch.sampling.grammar import compile_grammar
from specbranch.sampling.pipeline import TextConstraints
from specbranch.sampling.processors import takes_prompt
from specbranch.sampling_params import SamplingParams
from specbranch.structured_outputs import StructuredOutputsParams


def text_constraints(
    params: SamplingParams, prompt: Sequence[int], models: EngineModels
) -> TextConstraints:
    """The constraints of a text.

    Raises:
        InputError: token ids that the target does not have, bad words or a grammar without a
            tokenizer, a grammar that is none, or a callable that takes other arguments.
    """
    _check_ids("allowed_token_ids", params.allowed_token_ids or (), models)
    _check_ids("logit_bias", params.logit_bias or (), models)
    for processor in params.logits_processors or ():
        try:
            takes_prompt(processor)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"logits_processors must be callables of the generated token ids and a row of "
                f"logits, or of the prompt's token ids before both: {processor!r} {error}"
            ) from None
    grammar = None
    if isinstance(params.structured_outputs, StructuredOutputsParams):
        grammar = compile_grammar(params.structured_outputs, models.grammar_vocabulary)
    end_ids = models.target.eos_ids | frozenset(params.stop_token_ids or ())
    return TextConstraints(
        len(prompt),
        bad_word_ids(params.bad_words or (), models),
        frozenset(token for token in end_ids if 0 <= token < models.target.vocabulary),
        grammar,
    )


def _check_ids(name: str, ids: Sequence[int] | Any, models: EngineModels) -> None:
    vocabulary = models.target.vocabulary
    if wrong := [token for token in ids if not 0 <= token < vocabulary]:
        raise InputError(f"{name} must be between 0 and {vocabulary - 1}, not {min(wrong)}")


def bad_word_ids(words: Sequence[str], models: EngineModels) -> tuple[tuple[int, ...], ...]:
    """The token ids of each word, as it begins a text and as it follows a space.

    As in vLLM the second form counts only where it differs in its first token alone.

    Raises:
        InputError: no tokenizer, or a word without tokens.
    """
    tokenizer = models.tokenizer
    if words and tokenizer is None:
        raise InputError("bad_words need a tokenizer: use logits_processors")
    found: list[tuple[int, ...]] = []
    for word in words:
        plain, spaced = (
            tuple(tokenizer(space + word.lstrip(), add_special_tokens=False)["input_ids"])
            for space in ("", " ")
        )
        if not plain:
            raise InputError(f"bad_words: {word!r} has no tokens")
        found.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            found.append(spaced)
    return tuple(found)


def sendable(params: SamplingParams) -> SamplingParams:
    """The parameters as they can be sent to a draft in another process.

    Callables that cannot be are left out. The draft then proposes without them, which changes how
    much is accepted and no text.
    """
    try:
        pickle.dumps(params.logits_processors)
    except (pickle.PicklingError, AttributeError, TypeError):
        return replace(params, logits_processors=())
    return params
