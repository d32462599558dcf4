"""What the figures of the benchmarks have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def save(figure: Figure, axes: np.ndarray, file: Path, columns: int) -> None:
    """Write the panels `axes` to a file, under one legend: the first panel's, in `columns`."""
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    lines, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=columns, frameon=False)
    figure.savefig(file)
