"""Baselines that H-RAD is compared with, on the same held-out rows.

The inputs differ. H-RAD's classes and the explicit baseline need the target's features only, which
are known before anything is drafted. Predictions from confidences need the draft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specbranch.policy.acceptance import Calibration
from specbranch.policy.hrad import HRAD, RecordingSetup
from specbranch.policy.signal import Keep
from specbranch.training.hrad.records import Records
from specbranch.training.hrad.scores import Fit, Scores
from specbranch.training.hrad.train import Recipe, Split, fit, start_from_confidences

EPSILONS = tuple(i / 100 for i in range(1, 100))
CLASSES, TOKENS = "H-RAD, classes", "H-RAD, tokens"
EXPLICIT, IMPLICIT = "explicit", "implicit"
CALIBRATED, LOGISTIC, CONSTANT = "calibrated", "logistic", "constant"
# Inputs of each prediction: z are the target's features, confidences are the draft's.
GOES_BY = {
    CLASSES: "z",
    EXPLICIT: "z",
    TOKENS: "z, confidences",
    IMPLICIT: "confidences",
    CALIBRATED: "confidences",
    LOGISTIC: "confidences",
}


@dataclass(frozen=True)
class Comparison:
    """Held-out figures of H-RAD's heads and their baselines, by name.

    Attributes:
        classes: of the predicted signals.
        tokens: of the estimates of a token's acceptance, given that those before it are accepted.
        epsilon: ε of the implicit baseline.
    """

    classes: dict[str, Scores]
    tokens: dict[str, Fit]
    epsilon: float

    def figures(self) -> dict[str, Any]:
        """The main figures, as JSON types."""
        return {
            "macro_f1": {name: round(found.macro_f1, 4) for name, found in self.classes.items()},
            "brier": {name: round(found.brier, 4) for name, found in self.tokens.items()},
            "log_loss": {name: round(found.log_loss, 4) for name, found in self.tokens.items()},
        }


def compare(model: HRAD, split: Split, recipe: Recipe) -> Comparison:
    """Compare a trained H-RAD with its baselines, which are fitted to the same training rows.

    Args:
        model: the trained H-RAD.
        split: the records that it was trained on, and those to report on.
        recipe: hyperparameters that the model was trained with.
    """
    training, rows = split.training, split.held_out
    tested, labels = rows.tested, rows.labels
    scores, offsets = model(rows.z.float())
    by_tokens = model.token_scores(offsets, rows.confidences).sigmoid()
    epsilon = best_epsilon(training)
    calibrated = calibrate(training, rows)
    logistic = by_confidences(model.setting, training, rows)
    rate = training.survived[training.tested].float().mean()
    classes = {
        CLASSES: scores.argmax(-1),
        EXPLICIT: explicit(model, split, recipe),
        TOKENS: likeliest(by_tokens, rows),
        IMPLICIT: implicit(rows, epsilon),
        CALIBRATED: likeliest(calibrated, rows),
        LOGISTIC: likeliest(logistic, rows),
    }
    tokens = {
        TOKENS: by_tokens,
        CALIBRATED: calibrated,
        LOGISTIC: logistic,
        CONSTANT: rate.expand_as(calibrated),
    }
    return Comparison(
        {name: Scores.of(labels, found) for name, found in classes.items()},
        {name: Fit.of(found[tested], rows.survived[tested]) for name, found in tokens.items()},
        epsilon,
    )


def implicit(records: Records, epsilon: float) -> Tensor:
    """Classes by the confidence rule (`draft_length.kept_length`), int64 ``[n]``."""
    kept = (records.confidences >= epsilon).cumprod(1).sum(1)
    return _classes(kept, records.offered)


def best_epsilon(records: Records) -> float:
    """The ε with the best macro-F1 of the confidence rule: an upper bound, unknown in use."""
    labels = records.labels
    return max(EPSILONS, key=lambda e: Scores.of(labels, implicit(records, e)).macro_f1)


def explicit(model: HRAD, split: Split, recipe: Recipe) -> Tensor:
    """Classes by the same network trained to predict the accepted length, int64 ``[n]``.

    It has γ + 1 classes instead of three.
    """
    gamma = model.gamma

    def lengths(records: Records) -> Tensor:
        return torch.where(records.labels == Keep.ALL, gamma, records.accepted)

    baseline = fit(model.setting, split, recipe, "explicit baseline", gamma + 1, lengths)
    found = baseline(split.held_out.z.float())[0].argmax(-1)
    return _classes(found, torch.full_like(found, gamma))


def calibrate(training: Records, rows: Records) -> Tensor:
    """Acceptance of each token of `rows` by its confidence alone, float32 ``[n, γ]``.

    It is the estimate of a `Calibration` that has observed the training rows in their order.
    """
    calibration = Calibration()
    tested = training.tested
    pairs = zip(
        training.confidences[tested].tolist(), training.survived[tested].tolist(), strict=True
    )
    for confidence, survived in pairs:
        calibration.observe(confidence, survived)
    estimates = [[calibration.estimate(c) for c in row] for row in rows.confidences.tolist()]
    return torch.tensor(estimates)


def by_confidences(setting: RecordingSetup, training: Records, rows: Records) -> Tensor:
    """Acceptance of each token by H-RAD's second head without features, float32 ``[n, γ]``."""
    bare = HRAD(setting)
    start_from_confidences(bare, training)
    bare.requires_grad_(False)
    return bare.token_scores(bare.offsets.bias, rows.confidences).sigmoid()


def likeliest(acceptance: Tensor, records: Records) -> Tensor:
    """The likeliest class, int64 ``[n]``, from the acceptance of each token, float32 ``[n, γ]``."""
    offered = torch.arange(acceptance.shape[1]) < records.offered[:, None]
    whole = torch.where(offered, acceptance, 1.0).prod(1)
    nothing = 1 - acceptance[:, 0]
    return torch.stack([nothing, 1 - nothing - whole, whole], -1).argmax(-1)


def _classes(kept: Tensor, most: Tensor) -> Tensor:
    found = torch.full_like(kept, Keep.CONFIDENT)
    found[kept == most] = Keep.ALL
    found[kept == 0] = Keep.NOTHING
    return found
