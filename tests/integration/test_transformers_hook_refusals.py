"""What `custom_generate=specbranch.generate` refuses, and the models that it checks first."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    SynthIDTextWatermarkingConfig,
)
from transformers import PreTrainedModel as Model

import specbranch
from specbranch.errors import InputError, UnsupportedModelError
from specbranch.integrations import transformers as integration
from tests.families import FAMILIES
from tests.hook import POSITIONS, Recorder, ours_alone, padded, prompt, tiny


def test_assistant_model_alone_is_refused_with_the_remedy(target: Model, draft: Model) -> None:
    """transformers 5.23 keeps it to itself; when this fails, it has begun to hand it on."""
    with pytest.raises(InputError, match="pass it as draft_model="):
        target.generate(**prompt(6), assistant_model=draft, custom_generate=specbranch.generate)


def test_assistant_model_is_taken_where_it_arrives(target: Model, draft: Model) -> None:
    inputs = prompt(6)
    plain = target.generate(**inputs, do_sample=False, max_new_tokens=20)
    loop = partial(specbranch.generate, assistant_model=draft)
    assert ours_alone(target, None, **inputs, custom_generate=loop).tolist() == plain.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draft_model": None}, "pass it as draft_model="),
        ({"draft_model": "draft"}, "a loaded model, not a str"),
        ({"method": "pearl-necklace"}, "unknown method 'pearl-necklace': use autoregressive"),
        ({"gamma": 0}, "gamma must be 1 or more, or auto, not 0"),
        ({"padding": 0}, "padding must be 1 or more, or None, not 0"),
        ({"num_beams": 2}, "no beam_search: leave out num_beams"),
        ({"prompt_lookup_num_tokens": 3}, "no assisted_generation"),
        (
            {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
            "leave out output_scores, output_logits",
        ),
        ({"past_key_values": DynamicCache()}, "leave out past_key_values="),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidance.* keeps a state"),
        (
            {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2], ngram_len=2)},
            "SynthIDTextWatermark.* keeps a state",
        ),
        ({"position_ids": torch.arange(1, 7)[None]}, "leave out position_ids="),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}, "pad on the left"),
        ({"max_new_tokens": POSITIONS}, f"134 tokens and the target's context holds {POSITIONS}"),
        ({"token_streamer": Recorder(), **padded(3, 6)}, "takes one text, not 2"),
        (
            {"stopping_criteria": [EosTokenCriteria(3)], "pad_token_id": None, **padded(3, 6)},
            "set pad_token_id",
        ),
    ],
)
def test_what_cannot_be_given_is_refused_in_one_line(
    target: Model, draft: Model, arguments: dict[str, Any], message: str
) -> None:
    arguments = prompt(6) | {"draft_model": draft, "max_new_tokens": 5} | arguments
    with pytest.raises(InputError, match=message) as raised:
        target.generate(**arguments, custom_generate=specbranch.generate)
    assert "\n" not in str(raised.value)


def test_embeddings_instead_of_tokens_are_refused(target: Model, draft: Model) -> None:
    embeddings = target.get_input_embeddings()(prompt(6)["input_ids"])
    with pytest.raises(InputError, match="leave out inputs_embeds"):
        ours_alone(target, draft, inputs_embeds=embeddings)


def test_models_that_cannot_rewind_are_refused(target: Model, draft: Model) -> None:
    [family] = [family for family in FAMILIES if family.kind == "mamba"]
    recurrent = family.model()
    for pair in ((recurrent, draft), (target, recurrent)):
        with pytest.raises(UnsupportedModelError, match="do not go on from a state"):
            ours_alone(*pair, **prompt(6))


def test_a_shorter_context_of_the_draft_is_named(target: Model) -> None:
    short = tiny(5)
    short.config.max_position_embeddings = 16
    with pytest.raises(InputError, match="26 tokens and the draft's context holds 16"):
        ours_alone(target, short, **prompt(6))


def test_models_are_checked_once_and_again_when_they_change(
    target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    monkeypatch.setattr(integration, "validate", lambda runner, name, padding: checked.append(name))
    pair = tiny(6), tiny(7)
    for _ in range(3):
        ours_alone(*pair, **prompt(3), max_new_tokens=2)
    assert checked == ["the target", "the draft"]
    pair[0].to(torch.float64)
    ours_alone(*pair, **prompt(3), max_new_tokens=2)
    assert checked == ["the target", "the draft", "the target"]


def test_models_are_not_kept_alive() -> None:
    pair = tiny(8), tiny(9)
    ours_alone(*pair, **prompt(3), max_new_tokens=3)
    kept = [weakref.ref(model) for model in pair]
    del pair
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
