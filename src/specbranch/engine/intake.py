"""From what a user asks for to a request that the engine can take."""

from __future__ import annotations

import secrets
from dataclasses import replace

from specbranch.config import SpeculativeConfig
from specbranch.engine.constraints import text_constraints
from specbranch.engine.detokenizer import Detokenizer, TextOptions
from specbranch.engine.inputs import Prompt, encode
from specbranch.engine.models import EngineModels
from specbranch.engine.request import EngineRequest
from specbranch.errors import InputError
from specbranch.methods.registry import MethodSpec, pick_method
from specbranch.sampling_params import MOST_SEED, SamplingParams
from specbranch.token_sequence import TokenSequence


def make_request(
    id: int,
    prompt: Prompt,
    models: EngineModels,
    params: SamplingParams | None,
    method: MethodSpec | None,
    config: SpeculativeConfig,
) -> EngineRequest:
    """A request for a text; arguments and errors as for `Engine.make_request`.

    Args:
        id: the name of the text on every executor.
        models: what continues it.
    """
    params = (params or SamplingParams()).with_defaults(models.defaults)
    spec = method or pick_method(config.method, models.draft is not None)
    if params.n > 1:
        raise InputError(f"this makes one text: n must be 1, not {params.n}; generate makes more")
    encoded = encode(
        prompt,
        models.tokenizer,
        models.target.vocabulary,
        models.max_model_len,
        _prompt_length(params, models.max_model_len),
    )
    if params.seed is None and not params.greedy:
        params = replace(params, seed=secrets.randbits(63))
    if params.stop and models.tokenizer is None:
        raise InputError("stop strings need a tokenizer: use stop_token_ids")
    constraints = text_constraints(params, encoded.token_ids, models)
    options = TextOptions(
        params.skip_special_tokens, params.include_stop_str_in_output, params.min_tokens
    )
    tokenizer = models.tokenizer if params.detokenize else None
    detokenizer = Detokenizer(tokenizer, encoded.token_ids, params.stop or (), options)
    room = models.max_model_len - len(encoded.token_ids)
    stop_ids = set(params.stop_token_ids or ())
    if constraints.grammar is not None:
        stop_ids |= set(models.grammar_vocabulary.end_ids)
    elif not params.ignore_eos:
        stop_ids |= models.target.eos_ids
    sequence = TokenSequence(
        id,
        encoded.token_ids,
        room if params.max_tokens is None else min(params.max_tokens, room),
        frozenset(stop_ids),
        ends_text=lambda tokens: detokenizer.push(tokens[-1]),
    )
    return EngineRequest(
        encoded.text, sequence, detokenizer, params, spec, config, models.padding, constraints
    )


def _prompt_length(params: SamplingParams, max_model_len: int) -> int | None:
    """Most tokens that are kept of a prompt; None refuses those that do not fit."""
    if params.truncate_prompt_tokens != -1:
        return params.truncate_prompt_tokens
    return max(1, max_model_len - (params.max_tokens or 1))


def samples(params: SamplingParams) -> list[SamplingParams]:
    """The parameters of each of the `n` samples: seeds that follow one another, as in vLLM."""
    if params.n == 1:
        return [params]
    first = secrets.randbits(63) if params.seed is None else params.seed
    return [replace(params, n=1, seed=(first + i) % (MOST_SEED + 1)) for i in range(params.n)]
