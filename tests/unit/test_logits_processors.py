"""Logits processors: by definition, as in `transformers`, and lossless with every method."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from specbranch import LLM
from specbranch.config import SpeculativeConfig
from specbranch.engine.constraints import sendable
from specbranch.errors import InputError
from specbranch.methods.registry import METHODS
from specbranch.sampling.pipeline import LogitsPipeline, TextConstraints
from specbranch.sampling_params import SamplingParams
from tests.tables import decode, imitation, random_table
from tests.tiny import tiny_model, tiny_tokenizer

VOCABULARY = 11
SPECULATIVE = sorted(set(METHODS) - {"autoregressive"})
PENALTIES = st.sampled_from([0.0, 0.0, 0.7, 1.9, -1.1])


def no_echo(output, row):
    """Forbids the last two tokens."""
    row[output[-2:]] = -torch.inf
    return row


def lean(prompt, output, row):
    """Prefers a token that depends on both."""
    row[(sum(prompt) + 3 * len(output)) % len(row)] += 1.5
    return row


processed = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    top_p=st.sampled_from([1.0, 0.9]),
    seed=st.integers(0, 2**40),
    max_tokens=st.integers(12, 30),
    min_tokens=st.integers(0, 12),
    presence_penalty=PENALTIES,
    frequency_penalty=PENALTIES,
    repetition_penalty=st.sampled_from([1.0, 1.4, 0.8]),
    logit_bias=st.none()
    | st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-8, 8), max_size=3),
    allowed_token_ids=st.none() | st.lists(st.integers(0, VOCABULARY - 1), min_size=6, max_size=9),
    logits_processors=st.sampled_from([(), (no_echo,), (lean,), (lean, no_echo)]),
)
words = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=2).map(tuple), max_size=2
).map(tuple)


def reference(table, params, prompt, stop_ids, bad_words):
    """Plain greedy decoding by a fresh forward for every token, each rule written out."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < params.max_tokens:
        row, output = table(tuple(tokens)).clone(), tokens[len(prompt) :]
        for processor in params.logits_processors:
            given = (output, row) if processor is no_echo else (list(prompt), output, row)
            row = processor(*given)
        for token in range(VOCABULARY):
            if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
                row[token] = -torch.inf
        for *before, last in bad_words:
            if len(output) >= len(before) and output[len(output) - len(before) :] == before:
                row[last] = -torch.inf
        if len(output) < params.min_tokens:
            row[list(stop_ids)] = -torch.inf
        for token, bias in (params.logit_bias or {}).items():
            row[token] += bias
        for token in set(tokens):
            by = params.repetition_penalty
            row[token] = row[token] * by if row[token] < 0 else row[token] / by
        for token, count in Counter(output).items():
            row[token] -= torch.tensor(params.frequency_penalty) * count
            row[token] -= params.presence_penalty
        if row.max() == -torch.inf:
            return None
        tokens.append(int(row.log_softmax(-1).argmax()))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


@given(
    seed=st.integers(0, 10_000),
    params=processed,
    bad_words=words,
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_plain_decoding_is_what_the_rules_say(seed, params, bad_words, prompt, stop):
    params = SamplingParams(**vars(params) | {"temperature": 0.0})
    table = random_table(seed, VOCABULARY)
    right = reference(table, params, prompt, stop, bad_words)
    arguments = (table, table, VOCABULARY, params, None, prompt, stop)
    if right is None:
        with pytest.raises(InputError, match="leave no token"):
            decode("autoregressive", *arguments, bad_words=bad_words)
        return
    assert decode("autoregressive", *arguments, bad_words=bad_words).text.tokens == right


@pytest.mark.parametrize("method", SPECULATIVE)
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.5, 2.0]),
    params=processed,
    bad_words=words,
    gamma=st.sampled_from(["auto", 2, 5]),
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=1),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5),
    whims=st.none() | st.integers(0, 100),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_every_method_gives_plain_decodings_tokens(
    method, seed, noise, params, bad_words, gamma, stop, prompt, whims
):
    target = random_table(seed, VOCABULARY)
    draft = imitation(target, seed + 1, VOCABULARY, noise)
    config = SpeculativeConfig(gamma=gamma)
    arguments = (target, draft, VOCABULARY, params, config, prompt, stop)
    try:
        plain = decode("autoregressive", *arguments, bad_words=bad_words)
    except InputError:
        with pytest.raises(InputError, match="leave no token"):
            decode(method, *arguments, bad_words=bad_words, whims=whims)
        return
    ours = decode(method, *arguments, bad_words=bad_words, whims=whims)
    assert ours.text.tokens == plain.text.tokens
    assert ours.metrics.fates.total == ours.drafted


@pytest.mark.parametrize("method", ["speculative", "specbranch"])
def test_a_perfect_draft_stays_perfect(method):
    """The draft applies the processors too: what it proposes is what the target chooses."""
    target = random_table(3, VOCABULARY)
    params = SamplingParams(
        max_tokens=60,
        presence_penalty=1.5,
        logit_bias={2: 3.0},
        logits_processors=[lean],
        min_tokens=60,
    )
    options = SpeculativeConfig(gamma=4, epsilon=0.0)
    done = decode(
        method,
        target,
        target,
        VOCABULARY,
        params,
        options,
        stop_ids=frozenset({4}),
        bad_words=((2, 2),),
    )
    assert done.metrics.rollback_rate == 0
    assert len(done.text.tokens) == 60


@given(seed=st.integers(0, 1000), history=st.lists(st.integers(0, 39), min_size=1, max_size=12))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_where_transformers_has_the_same_rule_it_gives_the_same(seed, history):
    logits = 3 * torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
    # No prompt: transformers looks for bad words in it, too, and vLLM does not.
    text = TextConstraints(0, ((5,), (9, 3)), frozenset({7}))
    params = SamplingParams(
        repetition_penalty=1.3, min_tokens=8, logit_bias={4: 2.0, 11: -5.0}, bad_words=["unused"]
    )
    theirs = LogitsProcessorList(
        [
            NoBadWordsLogitsProcessor([[5], [9, 3]], eos_token_id=[39]),
            MinNewTokensLengthLogitsProcessor(0, 8, eos_token_id=[7]),
            SequenceBiasLogitsProcessor([[[4], 2.0], [[11], -5.0]]),
            RepetitionPenaltyLogitsProcessor(1.3),
        ]
    )
    expected = theirs(torch.tensor([history]), logits.clone()).log_softmax(-1)
    found = LogitsPipeline.of(params, text)(logits, [history])
    torch.testing.assert_close(found, expected)


def test_rows_of_several_paths_know_their_own_history():
    logits = torch.zeros(3, 5)
    pipeline = LogitsPipeline.of(
        SamplingParams(frequency_penalty=1.0), TextConstraints(prompt_length=1)
    )
    rows = pipeline(logits, [[0], [0, 1], [0, 1, 1, 2]]).exp()
    assert torch.equal(logits, torch.zeros(3, 5))
    assert rows[0].tolist() == pytest.approx([0.2] * 5)
    assert rows[1].argmin() == 1
    assert (rows[2][0] / rows[2][1]).item() == pytest.approx(torch.tensor(2.0).exp().item())


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"presence_penalty": 3}, "presence_penalty must be between -2 and 2, not 3.0"),
        ({"frequency_penalty": "much"}, "frequency_penalty must be a number, not 'much'"),
        ({"min_tokens": -1}, "min_tokens must be between 0 and 128, not -1"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be between 0 and 8, not 9"),
        ({"logit_bias": [3]}, "logit_bias must be a dictionary of token ids, not [3]"),
        ({"logit_bias": {"a": 1}}, "logit_bias must be a dictionary of token ids, not of 'a'"),
        ({"logit_bias": {3: None}}, "logit_bias of token 3 must be a number, not None"),
        ({"allowed_token_ids": []}, "allowed_token_ids must be one token id or more, not ()"),
        ({"bad_words": [""]}, "bad_words must be non-empty strings, not ('',)"),
        ({"logits_processors": [3]}, "logits_processors must be callables, not (3,)"),
    ],
)
def test_wrong_values_are_named_in_one_line(wrong, complaint):
    with pytest.raises(InputError) as caught:
        SamplingParams(**wrong)
    assert str(caught.value) == complaint


def test_json_keys_are_token_ids():
    assert SamplingParams(logit_bias={"3": 1}).logit_bias == {3: 1.0}


@pytest.fixture(scope="module")
def llm():
    target, draft = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    with LLM.from_models(target, draft, tiny_tokenizer(), speculate="always") as llm:
        yield llm


def test_bad_words_are_strings(llm):
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    [free] = llm.generate("w5 w9", params)
    first, second = free.outputs[0].token_ids[:2]
    banned = replace(params, bad_words=[f"w{first} w{second}", "w3"])
    texts = {m: llm.generate("w5 w9", banned, method=m)[0].outputs[0].token_ids for m in METHODS}
    plain = texts["autoregressive"]
    assert plain[0] == first and plain[1] != second
    assert 3 not in plain
    assert all(text == plain for text in texts.values())


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"logit_bias": {64: 1.0}}, "logit_bias must be between 0 and 63, not 64"),
        ({"allowed_token_ids": [3, -1]}, "allowed_token_ids must be between 0 and 63, not -1"),
        ({"bad_words": ["  "]}, "bad_words: '  ' has no tokens"),
        ({"logits_processors": [lambda row: row]}, "logits_processors must be callables of the"),
        ({"allowed_token_ids": [3], "bad_words": ["w3"]}, "leave no token to go on with"),
    ],
)
def test_what_does_not_fit_the_models_is_refused(llm, params, complaint):
    with pytest.raises(InputError) as caught:
        llm.generate("w5", SamplingParams(**params))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(llm.generate("w5", SamplingParams(max_tokens=3))[0].outputs[0].token_ids) <= 3


def test_a_callable_that_cannot_be_sent_stays_with_the_target():
    params = SamplingParams(logits_processors=[lambda output, row: row])
    assert sendable(params).logits_processors == ()
    params = SamplingParams(logits_processors=[lean])
    assert sendable(params) is params
