"""Structured outputs: always valid, and plain decoding's text with the same grammar."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

import llguidance
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance.hf import from_tokenizer

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.methods.registry import METHODS
from specbranch.models.loader import load_tokenizer
from specbranch.sampling.grammar import GrammarPath, GrammarVocabulary, compile_grammar
from specbranch.structured_outputs import StructuredOutputsParams
from tests.schemas import fits, random_schema
from tests.tiny import tiny_model

SIZE = 4100  # more logits than the tokenizer has tokens, as padded vocabularies have
END = 0
PROMPTS = ["A record:\n", "def f(x):\n    return ", "Once there was a king"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("target")


@pytest.fixture(scope="module")
def target():
    return tiny_model("llama", seed=1, vocab_size=SIZE)


@pytest.fixture(scope="module")
def llm(target, tokenizer):
    draft = tiny_model("llama", seed=1, vocab_size=SIZE, num_hidden_layers=1)
    with LLM.from_models(target, draft, tokenizer, speculate="always") as llm:
        yield llm


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return GrammarVocabulary.of(tokenizer, SIZE, frozenset({END}))


def json_params(schema, **others):
    structured = StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    return SamplingParams(max_tokens=200, structured_outputs=structured, **others)


def text_of(llm, prompt, params, method):
    [out] = llm.generate(prompt, params, method=method)
    return out.outputs[0].text


SAMPLED = [
    {},
    {"temperature": 0.9, "seed": 5},
    {"temperature": 0.9, "seed": 5, "acceptance": "rejection"},
]


@pytest.mark.parametrize("seed", range(4))
def test_every_text_is_valid_and_is_plain_decodings(llm, seed):
    schema, prompt = random_schema(seed), PROMPTS[seed % 3]
    params = json_params(schema, **SAMPLED[seed % 3])
    texts = {
        method: text_of(llm, prompt, params, method)
        for method in ("autoregressive", "specbranch", "speculative", "lookup")
    }
    assert all(fits(json.loads(text), schema) for text in texts.values()), texts
    equal = [t for m, t in texts.items() if params.acceptance == "coupled" or m == "lookup"]
    assert set(equal) == {texts["autoregressive"]}


def test_plain_decoding_is_the_likeliest_allowed_token(llm, target, tokenizer):
    """By a fresh forward and a fresh parser for every token."""
    schema = random_schema(1)
    parser_vocabulary = from_tokenizer(tokenizer, n_vocab=SIZE, eos_token=END)
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        schema, overrides={"whitespace_flexible": False}
    )
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    tokens = []
    while END not in tokens:
        with torch.inference_mode():
            row = target(torch.tensor([prompt + tokens])).logits[0, -1]
        parser = llguidance.LLMatcher(parser_vocabulary, grammar)
        assert parser.consume_tokens(tokens)
        allowed = [b > 0 for b in parser.compute_logit_bias()]
        best = row.masked_fill(~torch.tensor(allowed), -torch.inf)
        tokens.append(int(best.argmax()))
    [out] = llm.generate(PROMPTS[0], json_params(schema), method="autoregressive")
    assert out.outputs[0].token_ids == tokens


@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_parser_that_goes_along_paths_is_a_fresh_one(vocabulary, seed):
    """Paths that part anywhere, leave the grammar, and end."""
    dice = random.Random(seed)
    grammar = compile_grammar(StructuredOutputsParams(json=random_schema(seed % 7)), vocabulary)
    path = GrammarPath(vocabulary, grammar)
    known = [[]]
    for _ in range(25):
        tokens = list(dice.choice(known))
        tokens = tokens[: dice.randint(0, len(tokens))] if dice.random() < 0.4 else tokens
        fresh = GrammarPath(vocabulary, grammar)
        expected = fresh.allowed(tokens, SIZE)
        found = path.allowed(tokens, SIZE)
        assert (found is None) == (expected is None)
        assert path.forced(tokens) == fresh.forced(tokens)
        if expected is None:
            continue
        assert torch.equal(found, expected)
        choices = expected.nonzero().flatten().tolist()
        known.append([*tokens, dice.choice(choices)])
        known.append([*tokens, dice.randrange(SIZE)])


@pytest.mark.parametrize(
    ("structured", "valid"),
    [
        ({"choice": ["yes", "no", 'it "depends"']}, r'yes|no|it "depends"'),
        ({"regex": r"[0-9]{3}-[a-f]{2,4}"}, r"[0-9]{3}-[a-f]{2,4}"),
        (
            {"grammar": 'root ::= greeting " " name\ngreeting ::= "hi" | "ho"\nname ::= [a-c]{2}'},
            r"h[io] [a-c]{2}",
        ),
        ({"grammar": 'start: "x"~3 /[0-9]/'}, r"xxx[0-9]"),
    ],
)
def test_choices_expressions_and_grammars(llm, structured, valid):
    params = SamplingParams(max_tokens=60, structured_outputs=structured)
    texts = {method: text_of(llm, PROMPTS[0], params, method) for method in METHODS}
    assert re.fullmatch(valid, texts["autoregressive"])
    assert set(texts.values()) == {texts["autoregressive"]}


def test_the_text_ends_when_the_grammar_does(llm):
    """Whatever the parameters say that would have it go on."""
    params = SamplingParams(
        max_tokens=60,
        min_tokens=40,
        ignore_eos=True,
        structured_outputs=StructuredOutputsParams(choice=["one", "two"]),
    )
    for method in METHODS:
        [out] = llm.generate(PROMPTS[0], params, method=method)
        assert out.outputs[0].text in ("one", "two")
        assert (out.outputs[0].finish_reason, out.outputs[0].stop_reason) == ("stop", None)
    banned = replace(params, bad_words=["one", "two", "o", "t", "on", "tw"], min_tokens=0)
    with pytest.raises(InputError, match="leave no token to go on with"):
        llm.generate(PROMPTS[0], banned)


def test_penalties_and_biases_act_within_the_grammar(llm):
    params = SamplingParams(max_tokens=60, structured_outputs={"regex": "[ab]{12}"})
    a, b = (llm.tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "ab")
    allowed = [a, b, END]
    params = replace(params, allowed_token_ids=allowed, presence_penalty=2.0, frequency_penalty=2.0)
    texts = {method: text_of(llm, PROMPTS[0], params, method) for method in METHODS}
    assert set(texts.values()) == {texts["autoregressive"]}
    assert set(texts["autoregressive"]) == {"a", "b"}


def test_what_is_forced_takes_no_forward_of_the_draft(llm):
    """A text that leaves no choice: nothing is rolled back."""
    sentence = "the quick brown fox jumps over the lazy dog and runs away at once"
    params = SamplingParams(max_tokens=60, structured_outputs={"choice": [sentence]})
    for method in sorted(set(METHODS) - {"autoregressive"}):
        [out] = llm.generate(PROMPTS[0], params, method=method)
        assert out.outputs[0].text == sentence
        assert out.metrics.fates.rolled_back == 0, method
        assert out.metrics.mean_accepted_length > 2.5, method


@pytest.mark.parametrize(
    ("structured", "complaint"),
    [
        ({"json": {"type": "objekt"}}, "bad json: Invalid type: objekt"),
        ({"json": "no schema"}, "bad json: expected ident at line 1"),
        ({"json": {"type": "string", "not": {}}}, 'bad json: Unimplemented keys: ["not"]'),
        ({"regex": "a("}, "bad regex: "),
        ({"grammar": 'root ::= "a" | b'}, "bad grammar: "),
        (
            {"json": {}, "regex": "a"},
            "must have one of json, regex, choice, grammar, json_object, ",
        ),
        ({}, "must have one of json, regex, choice, grammar, json_object, not none"),
        ({"choice": "yes"}, "choice must be a list of strings, not 'yes'"),
        ({"choice": []}, "choice must be a list of strings, not []"),
        ({"regex": 5}, "regex must be text, not 5"),
        ({"json": 5}, "json must be a JSON schema, not 5"),
        ({"json_object": False}, "json_object must be True, or left out"),
        ({"yaml": "x"}, "must be StructuredOutputsParams, or a dictionary of json, "),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_line(llm, structured, complaint):
    with pytest.raises(InputError) as caught:
        llm.generate(PROMPTS[0], SamplingParams(structured_outputs=structured))
    assert str(caught.value).startswith("structured_outputs")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_tokenizer_it_is_refused(target):
    with LLM.from_models(target, None) as llm, pytest.raises(InputError, match="need a tokenizer"):
        llm.generate([[5]], SamplingParams(structured_outputs={"json_object": True}))
