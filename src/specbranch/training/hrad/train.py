"""Offline training of H-RAD on records, with early stopping on validation prompts."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from specbranch.errors import InputError
from specbranch.policy.hrad import HRAD, RecordingSetup
from specbranch.policy.hrad_loss import DROPOUT, WEIGHT_DECAY, token_loss
from specbranch.policy.signal import Keep
from specbranch.training.hrad.records import Records

LEARNING_RATE = 3e-4
PATIENCE = 4  # epochs without a better validation loss
BALANCE = 0.75  # a class has the weight frequency ** -BALANCE; 0.5 to 1 give similar results
VALIDATION = 0.15  # of the prompts that are not held out


@dataclass(frozen=True)
class Split:
    """Records of disjoint sets of prompts.

    Attributes:
        training: to fit the weights to.
        validation: to stop by.
        held_out: to report on.
    """

    training: Records
    validation: Records
    held_out: Records


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of the training.

    Attributes:
        epochs: most epochs.
        batch_size: rows of a batch.
        seed: of initial weights, order of rows, and dropout.
    """

    epochs: int = 20
    batch_size: int = 32
    seed: int = 0


def split(records: Records, held_out: float, seed: int) -> Split:
    """Split by prompt, because the rows of one text are too similar to test on each other.

    Args:
        records: to split.
        held_out: share of the prompts to report on.
        seed: of the random order of prompts.

    Raises:
        InputError: there are too few prompts for three parts, or no training row of some class.
    """
    prompts = records.prompts.unique().tolist()
    random.Random(seed).shuffle(prompts)
    first = max(1, round(held_out * len(prompts)))
    second = first + max(1, round(VALIDATION * (len(prompts) - first)))
    parts = [prompts[second:], prompts[first:second], prompts[:first]]
    if not parts[0]:
        raise InputError(f"records of {len(prompts)} prompts are too few to split: collect more")
    found = Split(*(records.select(torch.isin(records.prompts, torch.tensor(p))) for p in parts))
    lacking = [k.name.lower() for k in Keep if k not in found.training.labels]
    if lacking:
        raise InputError(f"no record to learn '{lacking[0]}' from: collect more")
    return found


def fit(
    setting: RecordingSetup,
    split: Split,
    recipe: Recipe,
    title: str,
    classes: int = len(Keep),
    label: Callable[[Records], Tensor] = lambda records: records.labels,
) -> HRAD:
    """Train both heads together, with a progress bar.

    The loss is the cross-entropy of the classes, weighted against their imbalance, plus the binary
    cross-entropy of the tokens that were tested. The weights of the epoch with the least validation
    loss are kept. They are rounded to the precision of a file, so that the reported figures are
    those of the loaded predictor.

    Args:
        setting: the pair and the sizes of the records.
        split: the records.
        recipe: hyperparameters.
        title: of the progress bar.
        classes: number of classes of the first head.
        label: gives the class of each record, int64 ``[n]``.

    Returns:
        A model in evaluation mode.
    """
    training, labels = split.training, label(split.training)
    weights = labels.bincount(minlength=classes).clamp_min(1).float() ** -BALANCE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = HRAD(setting, classes, DROPOUT)
        model.mean.copy_(training.z.float().mean(0))
        model.std.copy_(training.z.float().std(0).clamp_min(1e-6))
        start_from_confidences(model, training)
        adam = torch.optim.AdamW(
            model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
        least, kept, waited = float("inf"), model.state_dict(), 0
        bar = tqdm(range(1, recipe.epochs + 1), desc=title)
        for epoch in bar:
            model.train()
            for rows in torch.randperm(len(training)).split(recipe.batch_size):
                adam.zero_grad()
                loss(model, training.select(rows), labels[rows], weights).backward()
                adam.step()
            model.eval()
            with torch.inference_mode():
                value = loss(model, split.validation, label(split.validation), weights).item()
            bar.set_postfix(validation_loss=f"{value:.3f}")
            waited += 1
            if value < least:
                least, kept, waited = value, copy.deepcopy(model.state_dict()), 0
                model.trained = {"epochs": epoch}
            if waited == PATIENCE:
                break
    model.load_state_dict(kept)
    model.round_weights()
    return model.requires_grad_(False)


def start_from_confidences(model: HRAD, training: Records) -> None:
    """Fit the second head to the confidences alone: one logistic regression for each position.

    The features then only have to add what the confidences do not tell.
    """
    nn.init.zeros_(model.offsets.weight)
    tested = training.tested
    survived = training.survived[tested].float()
    fitted = [model.offsets.bias, model.slopes]
    descent = torch.optim.LBFGS(fitted, max_iter=100, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        descent.zero_grad()
        scores = model.token_scores(model.offsets.bias, training.confidences)[tested]
        value = F.binary_cross_entropy_with_logits(scores, survived)
        value.backward()
        return value

    descent.step(step)


def loss(model: HRAD, records: Records, labels: Tensor, weights: Tensor) -> Tensor:
    """The training loss, a scalar.

    Args:
        model: the predictor.
        records: n of them.
        labels: class of each record, int64 ``[n]``.
        weights: of the classes, float32.
    """
    scores, offsets = model(records.z.float())
    tokens = token_loss(model, offsets, records.confidences, records.offered, records.accepted)
    return F.cross_entropy(scores, labels, weights) + tokens
