"""Every decoding method gives plain decoding's very tokens (greedy and coupled sampling)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch.config import SpeculativeConfig
from specbranch.methods.registry import METHODS
from specbranch.sampling_params import SamplingParams
from tests.tables import decode, imitation, random_table

pytestmark = pytest.mark.slow

VOCABULARY = 11
SPECULATIVE = sorted(set(METHODS) - {"autoregressive"})
WITH_DRAFT = sorted(name for name, spec in METHODS.items() if spec.needs_draft)

options = st.builds(
    SpeculativeConfig,
    gamma=st.just("auto") | st.integers(1, 12),
    epsilon=st.sampled_from(["auto", 0.0, 0.2, 0.5, 0.8, 1.0]),
    k_max=st.just("auto") | st.integers(1, 8),
    branching=st.sampled_from(["outcomes", "point", "even"]),
    retrieval=st.booleans(),
)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 4]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    max_tokens=st.integers(1, 40),
    seed=st.integers(0, 2**40),
)


@pytest.mark.parametrize("method", SPECULATIVE)
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.5, 2.0, 50.0]),
    params=params,
    options=options,
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=1),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=5),
    whims=st.none() | st.integers(0, 100),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_tokens_are_those_of_plain_decoding(
    method, seed, noise, params, options, stop, prompt, whims
):
    target = random_table(seed, VOCABULARY)
    draft = imitation(target, seed + 1, VOCABULARY, noise)
    arguments = (target, draft, VOCABULARY, params, options, prompt, stop)
    plain = decode("autoregressive", *arguments)
    ours = decode(method, *arguments, whims=whims)
    assert ours.text.tokens == plain.text.tokens
    assert ours.metrics.fates.total == ours.drafted
    assert ours.text.finish_reason == plain.text.finish_reason
    assert [t for done in ours.rounds for t in done.tokens] == plain.text.tokens


@pytest.mark.parametrize("method", SPECULATIVE)
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.0, 0.5, 2.0, 50.0]),
    params=params,
    acceptance=st.sampled_from(["coupled", "rejection"]),
    options=options,
    stop=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    whims=st.none() | st.integers(0, 100),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_every_drafted_token_has_one_fate(
    method, seed, noise, params, acceptance, options, stop, whims
):
    target = random_table(seed, VOCABULARY)
    draft = imitation(target, seed + 1, VOCABULARY, noise)
    params = replace(params, acceptance=acceptance)
    done = decode(method, target, draft, VOCABULARY, params, options, stop_ids=stop, whims=whims)
    assert done.metrics.fates.total == done.drafted
    assert min(vars(done.metrics.fates).values()) >= 0
    own = sum(origin == "target" for origin in done.text.origins)
    assert done.metrics.fates.accepted + own == len(done.text.tokens) == done.metrics.committed


@pytest.mark.parametrize("method", WITH_DRAFT)
def test_a_draft_equal_to_the_target_is_always_accepted(method):
    target = random_table(3, VOCABULARY)
    # Cold enough for AdaEDL, which stops at high entropy.
    params = SamplingParams(max_tokens=60, temperature=0.3, seed=4)
    options = SpeculativeConfig(gamma=4, epsilon=0.0)
    done = decode(method, target, target, VOCABULARY, params, options)
    assert done.metrics.rollback_rate == 0
    # Five tokens a call: four drafted and the target's own, or the surviving candidate. That is
    # one of the four in PEARL.
    expected = 4 if method == "pearl" else 5
    assert done.metrics.mean_accepted_length == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("method", WITH_DRAFT)
@pytest.mark.parametrize("size", [7, 14])
def test_the_draft_may_pad_its_vocabulary_otherwise(method, size):
    target = random_table(9, VOCABULARY)

    def draft(context):
        assert max(context) < size, "the draft has no such token"
        logits = target(context)[:size]
        return torch.cat([logits, torch.full((size - len(logits),), 50.0)])

    params = SamplingParams(temperature=1.0, seed=2, max_tokens=60)
    arguments = (target, draft, VOCABULARY, params, SpeculativeConfig(gamma=4, epsilon=0.2), (0,))
    plain, ours = (decode(m, *arguments, draft_vocabulary=size) for m in ("autoregressive", method))
    assert plain.text.tokens == ours.text.tokens
    assert max(plain.text.tokens) >= 7
    assert ours.metrics.fates.accepted > 10


def test_another_seed_gives_another_text():
    target = random_table(5, VOCABULARY)
    texts = {
        tuple(
            decode(
                "specbranch",
                target,
                target,
                VOCABULARY,
                SamplingParams(temperature=1.0, seed=seed, max_tokens=20),
            ).text.tokens
        )
        for seed in range(10)
    }
    assert len(texts) == 10
