"""Training of the predictor on records, stopped early by prompts set aside for that."""

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
from specbranch.policy.hrad import HRAD
from specbranch.policy.signal import Keep
from specbranch.training.hrad.records import RecordingSetup, Records

# A few thousand rows of thousands of numbers: what matters is not to learn them by heart.
DROPOUT = 0.8
WEIGHT_DECAY = 0.1
LEARNING_RATE = 3e-4
PATIENCE = 4  # epochs without a better validation loss
BALANCE = 0.75  # a class counts by its frequency to the power of minus this; 0.5 to 1 are alike
VALIDATION = 0.15  # of the prompts that are not held out


@dataclass(frozen=True)
class Split:
    """Records of different prompts: to learn from, to stop by, and to report on."""

    training: Records
    validation: Records
    held_out: Records


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: most of them.
        seed: of weights, order of rows, and dropout.
    """

    epochs: int = 20
    batch_size: int = 32
    seed: int = 0


def split(records: Records, held_out: float, seed: int) -> Split:
    """Split by prompt: the rows of one text are too much alike to judge by what was learned.

    Args:
        held_out: share of the prompts to report on.

    Raises:
        InputError: too few prompts for all three parts, or no row of some class to learn from.
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
    """Train both heads together; shows a bar.

    The loss is the cross-entropy of the classes, weighted against their imbalance, plus the binary
    cross-entropy of the tokens that were judged. The weights of the epoch with the least validation
    loss are kept, rounded as a file holds them, so that what is reported is what is loaded.

    Args:
        classes: to tell apart by the first head.
        label: class of each record, int64 ``[n]``.

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
    """Set the second head to what the confidences alone say: a logistic regression a place.

    From there on the features have only to say what the confidences do not.
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
    """The scalar that is minimised."""
    scores, offsets = model(records.z.float())
    return F.cross_entropy(scores, labels, weights) + token_loss(model, offsets, records)


def token_loss(model: HRAD, offsets: Tensor, records: Records) -> Tensor:
    """The binary cross-entropy of the tokens that were judged; offsets are ``[n, γ]``."""
    tokens = model.token_scores(offsets, records.confidences)[records.tested]
    return F.binary_cross_entropy_with_logits(tokens, records.survived[records.tested].float())
