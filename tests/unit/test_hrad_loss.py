"""The loss of H-RAD's second head, by hand."""

import math

import pytest
import torch

from specbranch.policy import hrad_loss
from specbranch.policy.hrad import HRAD, RecordingSetup


def test_a_token_is_tested_if_all_before_it_were_accepted():
    offered, accepted = torch.tensor([3, 3, 2, 0]), torch.tensor([0, 2, 2, 0])
    assert hrad_loss.tested(accepted, offered, 3).int().tolist() == [
        [1, 0, 0],
        [1, 1, 1],
        [1, 1, 0],
        [0, 0, 0],
    ]
    survived = hrad_loss.survived(accepted, 3).int().tolist()
    assert survived == [[0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_the_loss_is_that_of_the_tested_tokens():
    model = HRAD(RecordingSetup("t", "", "d", "", 3, 1, 2, "float32"))
    confidences = torch.tensor([[0.75, 0.5, 0.99]])  # logits log 3, 0 and an untested one
    offsets = torch.zeros(1, 3)
    offered, accepted = torch.tensor([3]), torch.tensor([1])
    loss = hrad_loss.token_loss(model, offsets, confidences, offered, accepted)
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
