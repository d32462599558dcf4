"""H-RAD that learns while it is used, on features and outcomes made by hand and on a pair."""

import pytest
import torch

from specbranch.llm import LLM
from specbranch.policy.hrad import RecordingSetup
from specbranch.policy.online_hrad import LEAST, OnlineHRAD
from specbranch.policy.signal import Keep
from specbranch.sampling_params import SamplingParams

pytestmark = pytest.mark.slow


def online() -> OnlineHRAD:
    setting = RecordingSetup("t", "", "d", "", gamma=4, layers=1, hidden_size=8, dtype="float32")
    return OnlineHRAD(setting, torch.device("cpu"))


def show(learner: OnlineHRAD, rounds: int) -> None:
    """Observe rounds in which the sign of a feature decides between all accepted and none."""
    generator = torch.Generator().manual_seed(1)
    for i in range(rounds):
        z = torch.randn(16, generator=generator)
        z[0] = 2.0 if i % 2 else -2.0
        learner.observe(z, [0.5] * 4, 4 if i % 2 else 0)
        learner.learn()


def test_there_is_no_signal_before_enough_rounds():
    learner = online()
    show(learner, LEAST - 1)
    assert learner.signal(torch.zeros(16)) is None
    show(learner, 1)
    assert learner.signal(torch.zeros(16)) is not None
    learner.reset()
    assert learner.signal(torch.zeros(16)) is None


def test_acceptance_is_learned_from_outcomes():
    learner = online()
    show(learner, 600)
    good, bad = torch.zeros(16), torch.zeros(16)
    good[0], bad[0] = 2.0, -2.0
    found = [learner.signal(z) for z in (good, bad)]
    assert [s.keep for s in found] == [Keep.CONFIDENT] * 2
    likely, unlikely = (s.acceptance([0.5])[0] for s in found)
    assert likely > 0.6 > 0.4 > unlikely


def test_chains_longer_than_gamma_and_empty_ones_are_observed():
    learner = online()
    learner.observe(torch.zeros(16), [0.5] * 9, 7)
    learner.observe(torch.zeros(16), [], 0)
    for _ in range(LEAST):
        learner.observe(torch.zeros(16), [0.9], 1)
        learner.learn()
    assert learner.signal(torch.zeros(16)).acceptance([0.9])[0] > 0.5


def test_the_text_is_that_of_plain_decoding_and_every_chain_is_observed(monkeypatch):
    seen = []
    observe = OnlineHRAD.observe
    monkeypatch.setattr(
        OnlineHRAD, "observe", lambda self, *row: (seen.append(row), observe(self, *row))
    )
    params = SamplingParams(max_tokens=200)
    with LLM(hrad="online", executor="inline", speculate="always", retrieval=False) as llm:
        [ours] = llm.generate("def f(x):", params)
        [plain] = llm.plain().generate("def f(x):", params)
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    # The first round has no verification before it, and so no features.
    expected = [(done.chain, done.accepted) for done in ours.rounds[1:]]
    assert [(len(confidences), accepted) for _, confidences, accepted in seen] == expected
    assert len(seen) > LEAST / 2
