"""From what a user asks for to a request that the engine can take."""

from __future__ import annotations

import secrets
from dataclasses import replace

from specbranch.config import SpeculativeConfig
from specbranch.engine.constraints import text_constraints
from specbranch.engine.detokenizer import Detokenizer
from specbranch.engine.inputs import Prompt, encode
from specbranch.engine.models import EngineModels
from specbranch.engine.request import EngineRequest
from specbranch.errors import InputError
from specbranch.methods.registry import MethodSpec, pick_method
from specbranch.sampling_params import SamplingParams
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
    params = params or SamplingParams()
    spec = method or pick_method(config.method, models.draft is not None)
    encoded = encode(prompt, models.tokenizer, models.target.vocabulary, models.max_model_len)
    if params.seed is None and not params.greedy:
        params = replace(params, seed=secrets.randbits(63))
    if params.stop and models.tokenizer is None:
        raise InputError("stop strings need a tokenizer: use stop_token_ids")
    constraints = text_constraints(params, encoded.token_ids, models)
    detokenizer = Detokenizer(models.tokenizer, encoded.token_ids, params.stop or ())
    room = models.max_model_len - len(encoded.token_ids)
    stop_ids = set(params.stop_token_ids or ())
    if not params.ignore_eos:
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
