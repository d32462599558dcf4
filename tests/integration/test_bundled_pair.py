"""The bundled pair itself: with every method its text is plain decoding's."""

import pytest

from specbranch import LLM, SamplingParams
from specbranch.methods.registry import METHODS

PROMPTS = ["def quicksort(xs):", "The city of "]


@pytest.mark.parametrize("draft", ["draft", "draft-weak"])
def test_text_is_that_of_plain_decoding(draft):
    with LLM(draft=draft, executor="inline", speculate="always") as llm:
        for params in (
            SamplingParams(max_tokens=24),
            SamplingParams(max_tokens=24, temperature=0.8, top_p=0.9, seed=4),
        ):
            plain = llm.generate(PROMPTS, params, method="autoregressive")
            for method in sorted(set(METHODS) - {"autoregressive"}):
                ours = llm.generate(PROMPTS, params, method=method)
                for a, b in zip(plain, ours, strict=True):
                    assert a.outputs[0].token_ids == b.outputs[0].token_ids, method
                    assert a.outputs[0].text == b.outputs[0].text, method
                if params.greedy and METHODS[method].needs_draft:
                    assert sum(output.metrics.fates.accepted for output in ours) > 0


@pytest.mark.parametrize("method", ["lookup", "lookahead"])
def test_drafting_without_a_draft(method):
    with LLM(draft=None, method=method, executor="inline") as llm:
        assert llm.draft is None
        prompt, params = "one two three one two three one two", SamplingParams(max_tokens=40)
        plain = llm.generate(prompt, params, method="autoregressive")[0]
        found = llm.generate(prompt, params)[0]
    assert found.outputs[0].token_ids == plain.outputs[0].token_ids
    assert found.metrics.fates.accepted > 0
    assert found.metrics.target_calls < plain.metrics.target_calls
