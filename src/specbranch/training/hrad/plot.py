"""A plot of the feature space by class, before and after the hidden layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specbranch.bench.plot_file import check_file
from specbranch.policy.hrad import HRAD
from specbranch.policy.signal import Keep
from specbranch.training.hrad.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 1500  # more would hide each other
LOT = 50  # points drawn at a time
# Colour (safe for colour-blind readers), marker and meaning of each class.
LOOKS = {
    Keep.NOTHING: ("#d55e00", "v", "0: none of the next γ accepted"),
    Keep.CONFIDENT: ("#9a9a9a", "o", "1: some"),
    Keep.ALL: ("#0072b2", "^", "2: all"),
}


def principal(x: Tensor) -> tuple[Tensor, list[float]]:
    """The first two principal components.

    Args:
        x: float32 ``[n, d]``.

    Returns:
        The rows' coordinates, float32 ``[n, 2]``, and each component's share of the variance.
    """
    left, sizes, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    shares = sizes.square() / sizes.square().sum()
    return left[:, :2] * sizes[:2], shares[:2].tolist()


@torch.inference_mode()
def draw(model: HRAD, records: Records, file: Path) -> None:
    """Draw two panels: z and the hidden layers' features, each by its principal components.

    Args:
        model: the predictor.
        records: held-out ones.
        file: .svg or .png.

    Raises:
        InputError: as for `check_file`.
    """
    check_file(file)
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    z = records.z.float()
    panels = {
        f"z: {z.shape[1]} features of the target": (z - model.mean) / model.std,
        "hidden layers: 64 features": model.features(z),
    }
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    for axis, (title, x) in zip(axes, panels.items(), strict=True):
        _draw_panel(axis, title, x, records.labels)
    # The legend shows full colours, because the points are half transparent.
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=meaning)
        for colour, marker, meaning in LOOKS.values()
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    pair = f"{model.setting.target} + {model.setting.draft}"
    count = f"{min(MAX_POINTS, len(z))} of {len(z)} held-out rounds"
    figure.suptitle(f"{pair}, {count}, by what became of the round's draft", fontsize=11)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def _draw_panel(axis: Axes, title: str, x: Tensor, labels: Tensor) -> None:
    places, shares = principal(x)
    shown = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MAX_POINTS]
    # The classes alternate in small lots, so that none covers the others.
    for lot in shown.split(LOT):
        for keep, (colour, marker, _) in LOOKS.items():
            ours = places[lot[labels[lot] == keep]]
            axis.scatter(
                ours[:, 0], ours[:, 1], s=16, c=colour, marker=marker, alpha=0.55, linewidths=0
            )
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(f"first principal component ({100 * shares[0]:.0f} % of variance)", fontsize=9)
    axis.set_ylabel(f"second ({100 * shares[1]:.0f} %)", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
