"""The public API, on a tiny pair with the bundled pair's tokenizer."""

from dataclasses import replace

import pytest

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.methods.registry import METHODS
from tests.hosted import hosted

PROMPTS = ["def quicksort(xs):", "Question: A robe takes 2 bolts.\nAnswer:", "The city of "]
pytestmark = pytest.mark.usefixtures("small_pair")

SPECULATIVE = sorted(set(METHODS) - {"autoregressive"})


@pytest.fixture(scope="module", params=["draft", "draft-weak"])
def llm(request, small_pair):
    with LLM(draft=request.param, executor="inline", speculate="always") as llm:
        yield llm


@pytest.mark.parametrize("method", SPECULATIVE)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=40),
        SamplingParams(max_tokens=40, temperature=1.0, seed=3),
        SamplingParams(max_tokens=40, temperature=0.7, top_p=0.9, seed=4),
        SamplingParams(max_tokens=40, repetition_penalty=1.3),
    ],
)
def test_text_is_that_of_plain_decoding(llm, method, params):
    plain = llm.generate(PROMPTS, params, method="autoregressive")
    ours = llm.generate(PROMPTS, params, method=method)
    for a, b in zip(plain, ours, strict=True):
        assert a.outputs[0].token_ids == b.outputs[0].token_ids
        assert a.outputs[0].text == b.outputs[0].text
        assert b.metrics.target_calls <= a.metrics.target_calls
        assert b.metrics.fates.total >= b.metrics.fates.accepted
        # Sampled text need not repeat itself.
        assert b.metrics.fates.accepted > 0 or not METHODS[method].needs_draft


def test_bfloat16_is_bit_exact():
    """In bfloat16 the text of methods that round differently parts within a few tokens."""
    with LLM(dtype="bfloat16", executor="inline") as llm:
        params = SamplingParams(max_tokens=48)
        plain = llm.generate(PROMPTS[:2], params, method="autoregressive")
        for method in SPECULATIVE:
            ours = llm.generate(PROMPTS[:2], params, method=method)
            same = [o.outputs[0].token_ids for o in plain] == [o.outputs[0].token_ids for o in ours]
            assert same, method


def test_stream_gives_the_text_of_generate(llm):
    params = SamplingParams(max_tokens=50, stop=["\n\n"])
    output = llm.generate(PROMPTS[0], params)[0].outputs[0]
    pieces = list(llm.stream(PROMPTS[0], params))
    assert "".join(map(str, pieces)) == output.text
    assert "\n\n" not in output.text


def test_pieces_of_a_stream_say_where_they_come_from(llm):
    request = llm.request(PROMPTS[0], SamplingParams(max_tokens=20))
    origins = [piece.origin for piece in llm.stream_request(request)]
    # A piece is of one token or more: of the last one it says where that comes from.
    assert set(origins) <= set(request.output().outputs[0].origins)
    assert origins[-1] == request.output().outputs[0].origins[-1]


def test_token_ids_as_prompt(llm):
    ids = llm.tokenizer(PROMPTS[0])["input_ids"]
    params = SamplingParams(max_tokens=10)
    by_ids, by_text = (llm.generate(p, params)[0] for p in (ids, PROMPTS[0]))
    assert by_ids.outputs[0].token_ids == by_text.outputs[0].token_ids
    assert by_ids.prompt_token_ids == ids


def test_the_context_limit_ends_the_text():
    with LLM(max_model_len=24, executor="inline") as llm:
        ids = llm.tokenizer("def quicksort(xs):")["input_ids"]
        for method in METHODS:
            output = llm.generate(
                ids, SamplingParams(max_tokens=100, ignore_eos=True), method=method
            )[0]
            assert len(ids) + len(output.outputs[0].token_ids) == 24
            assert output.outputs[0].finish_reason == "length"
        with pytest.raises(InputError, match="prompt has 24 tokens and the context holds 24"):
            llm.generate([ids[:1] * 24])


def test_a_text_as_long_as_the_model_allows():
    """Drafts, branches and padding reach past the last position without touching it."""
    with LLM(executor="inline") as llm:
        ids = [0] + llm.tokenizer("word")["input_ids"][1:2] * (llm.max_model_len - 13)
        params = SamplingParams(max_tokens=100, ignore_eos=True)
        texts = [llm.generate(ids, params, method=m)[0].outputs[0].token_ids for m in METHODS]
        assert len(texts[0]) == 12
        assert texts[1:] == texts[:1] * (len(texts) - 1)


def test_a_closed_generator_frees_its_sequence(llm):
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=100))
    next(stream)
    stream.close()
    first = llm.generate(PROMPTS[0], SamplingParams(max_tokens=5))
    assert len(first[0].outputs[0].token_ids) == 5
    assert hosted(llm.engine.executors.verifier)._texts == {}
    assert hosted(llm.engine.executors.drafter)._trees == {}


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "the prompt is empty"),
        ([[]], "the prompt has no tokens"),
        ([[0, 99999]], "token ids must be between 0 and 4095"),
        ("word " * 3000, "the context holds 1024"),
    ],
)
def test_bad_prompts(llm, prompt, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        llm.generate(prompt)
    assert "\n" not in str(caught.value)


def test_bad_methods_and_widths():
    with pytest.raises(InputError, match="unknown method 'psychic': use autoregressive,"):
        LLM(method="psychic")
    with pytest.raises(InputError, match="'speculative' needs a draft"):
        LLM(draft=None, method="speculative")
    with pytest.raises(InputError, match="padding must be auto, 1 or more, or None, not 0"):
        LLM(padding=0)
    with pytest.raises(InputError, match="max_model_len must be between 2 and 1024"):
        LLM(max_model_len=5000)
    with pytest.raises(InputError, match="unknown dtype 'int3': use auto, float32"):
        LLM(dtype="int3")


def test_sampled_texts_do_not_turn_the_draft_off_for_greedy_ones():
    with LLM(executor="inline") as llm:
        sampled = SamplingParams(max_tokens=8, temperature=1.0, seed=1)
        llm.generate(PROMPTS[0], sampled)
        [tuning] = llm.engine.executors.tunings.values()
        tuning._gate.paused, tuning._gate._plain_left = True, 1000
        [output] = llm.generate(PROMPTS[0], replace(sampled, max_tokens=30))
        assert output.metrics.draft_stages == 0
        [output] = llm.generate(PROMPTS[0], SamplingParams(max_tokens=30))
        assert output.metrics.draft_stages > 0
