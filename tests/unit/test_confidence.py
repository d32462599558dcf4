"""The confidences of the drafter, which depend on the acceptance rule."""

import pytest
import torch

from specbranch.models.runner import CausalRunner
from specbranch.policy.branching import confidence
from specbranch.sampling.rng import Stream, gumbel_noise
from specbranch.sampling_params import SamplingParams
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import CommitUpdate, DraftText, OpenText
from tests.tiny import VOCABULARY, tiny_model


def test_confidence_includes_the_noise_by_which_the_target_chooses():
    model = tiny_model("llama")
    noise = gumbel_noise(3, 3, Stream.TARGET, VOCABULARY)
    logits = model(torch.tensor([[5, 6, 7]])).logits[0, -1:].float()
    for params, expected in (
        (SamplingParams(), logits),
        (SamplingParams(temperature=0.8, seed=3, acceptance="rejection"), logits),
        (SamplingParams(temperature=0.8, seed=3), (logits / 0.8).log_softmax(-1) + noise),
    ):
        drafter = Drafter(CausalRunner(model))
        drafter.open([OpenText(0, [5, 6, 7], params, 40, VOCABULARY)])
        [chain] = drafter.draft([DraftText(0, CommitUpdate(3), gamma=1)])
        assert chain.confidences == pytest.approx(confidence(expected), rel=1e-4)
