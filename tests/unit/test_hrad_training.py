"""H-RAD's training and baselines, on records made by hand."""

import math

import pytest
import torch

from specbranch.errors import InputError
from specbranch.policy.hrad import RecordingSetup
from specbranch.policy.signal import Keep
from specbranch.training.hrad import baselines
from specbranch.training.hrad.records import Records
from specbranch.training.hrad.scores import Fit, Scores
from specbranch.training.hrad.train import Recipe, fit, split


def setup():
    return RecordingSetup("big", "b1", "small", "s1", 4, 1, 128, "float32")


def test_labels_and_tested_tokens():
    # The last two chains are short, because their last draft token ends the text.
    offered, accepted = torch.tensor([3, 3, 3, 3, 2, 1]), torch.tensor([0, 1, 2, 3, 2, 0])
    rows = Records(torch.zeros(6, 1), torch.ones(6, 3), offered, accepted, torch.zeros(6))
    assert rows.labels.tolist() == [0, 1, 1, 2, 2, 0]
    tested = ["100", "110", "111", "111", "110", "100"]
    survived = ["000", "100", "110", "111", "110", "000"]
    assert rows.tested.int().tolist() == [[int(c) for c in row] for row in tested]
    assert rows.survived.int().tolist() == [[int(c) for c in row] for row in survived]


def synthetic(shuffled=False, prompts=60, rows=25, gamma=4, width=128):
    """Acceptance depends on a direction of z and, less, on the confidences."""
    generator = torch.Generator().manual_seed(3)
    n = prompts * rows
    direction = torch.randn(2 * width, generator=generator)
    z = 0.3 * torch.randn(n, 2 * width, generator=generator)
    ease = 2 * torch.randn(n, generator=generator)
    z += ease[:, None] * direction
    confidences = torch.rand(n, gamma, generator=generator)
    hardness = torch.linspace(-1.5, 1.5, gamma)
    chance = (15 * (ease[:, None] - hardness) + confidences.logit(eps=1e-3)).sigmoid()
    kept = torch.rand(n, gamma, generator=generator) < chance
    accepted = kept.long().cumprod(1).sum(1)
    if shuffled:
        z = z[torch.randperm(n, generator=generator)]
    offered = torch.full((n,), gamma)
    return Records(z, confidences, offered, accepted, torch.arange(prompts).repeat_interleave(rows))


def test_no_prompt_is_in_two_parts():
    records = synthetic()
    parts = split(records, 0.2, seed=1)
    sides = [set(p.prompts.tolist()) for p in (parts.training, parts.validation, parts.held_out)]
    assert [len(side) for side in sides] == [41, 7, 12]
    assert set.union(*sides) == set(range(60))
    again, other = split(records, 0.2, seed=1), split(records, 0.2, seed=2)
    assert torch.equal(again.held_out.z, parts.held_out.z)
    assert set(other.held_out.prompts.tolist()) != sides[2]
    with pytest.raises(InputError, match="records of 2 prompts are too few to split"):
        split(records.select(records.prompts < 2), 0.2, seed=1)
    with pytest.raises(InputError, match="no record to learn 'all' from"):
        split(records.select(records.labels != Keep.ALL), 0.2, seed=1)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_features_are_learned_unless_they_are_shuffled(shuffled):
    parts = split(synthetic(shuffled), 0.2, seed=0)
    recipe = Recipe(epochs=15)
    model = fit(setup(), parts, recipe, "test")
    found = baselines.compare(model, parts, recipe)
    macro = {name: scores.macro_f1 for name, scores in found.classes.items()}
    loss = {name: fitted.log_loss for name, fitted in found.tokens.items()}
    if shuffled:
        assert macro[baselines.CLASSES] < 0.45
        assert loss[baselines.TOKENS] > 0.97 * loss[baselines.LOGISTIC]
    else:
        assert min(macro[baselines.CLASSES], macro[baselines.EXPLICIT]) > 0.65
        assert macro[baselines.TOKENS] > 0.7
        assert (
            loss[baselines.TOKENS] < 0.5 * loss[baselines.LOGISTIC] < 0.5 * loss[baselines.CONSTANT]
        )


def test_training_is_repeatable():
    parts = split(synthetic(prompts=12), 0.2, seed=0)
    one, two = (fit(setup(), parts, Recipe(epochs=2), "test") for _ in range(2))
    assert torch.equal(one.classes.weight, two.classes.weight)
    other = fit(setup(), parts, Recipe(epochs=2, seed=1), "test")
    assert not torch.equal(one.classes.weight, other.classes.weight)


def test_baselines_by_confidences():
    confidences = torch.tensor([[0.9, 0.9, 0.9], [0.9, 0.2, 0.9], [0.1, 0.9, 0.9], [0.9, 0.8, 0.0]])
    offered, accepted = torch.tensor([3, 3, 3, 2]), torch.tensor([3, 1, 0, 2])
    rows = Records(torch.zeros(4, 1), confidences, offered, accepted, torch.zeros(4))
    assert baselines.implicit(rows, 0.5).tolist() == [2, 1, 0, 2]
    assert baselines.implicit(rows, 0.85).tolist() == [2, 1, 0, 1]
    assert 0.2 < baselines.best_epsilon(rows) <= 0.8
    # 0: nothing 0.6; 1: 0.4 · (1 − 0.7 · 0.9); then all of two tokens: 0.9 · 0.9.
    acceptance = torch.tensor([[0.4, 0.7, 0.9], [0.8, 0.3, 0.9], [0.1, 0.9, 0.9], [0.9, 0.9, 0.0]])
    assert baselines.likeliest(acceptance, rows).tolist() == [0, 1, 0, 2]


def test_scores_by_hand():
    scores = Scores.of(torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 1]))
    assert scores.confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 1, 0]]
    assert scores.precision == pytest.approx([1 / 2, 2 / 4, 0])
    assert scores.recall == pytest.approx([1 / 2, 2 / 3, 0])
    assert scores.f1 == pytest.approx([1 / 2, 4 / 7, 0])
    assert scores.macro_f1 == pytest.approx((1 / 2 + 4 / 7) / 3)
    fitted = Fit.of(torch.tensor([0.8, 0.4]), torch.tensor([True, False]))
    assert fitted.brier == pytest.approx((0.04 + 0.16) / 2)
    assert fitted.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
