"""A heat map of SpecBranch's gain over c and γ."""

from __future__ import annotations

from pathlib import Path

from specbranch.simulate.predict import Sweep


def draw(found: Sweep, title: str, file: Path) -> None:
    """Write the heat map; every cell says its number."""
    import matplotlib.pyplot as plt

    rows, columns = len(found.cs), len(found.gammas)
    figure, axis = plt.subplots(
        figsize=(2.2 + 0.85 * columns, 1.5 + 0.55 * rows), layout="constrained"
    )
    image = axis.imshow(found.ratios, cmap="viridis", aspect="auto", origin="lower")
    axis.set_xticks(range(columns), labels=[str(gamma) for gamma in found.gammas])
    axis.set_yticks(range(rows), labels=[f"{c:g}" for c in found.cs])
    axis.set_xlabel("γ, most tokens drafted ahead")
    axis.set_ylabel("c, target forward ÷ draft step")
    axis.set_title(title, fontsize=10)
    every = [ratio for ratios in found.ratios for ratio in ratios]
    middle = (min(every) + max(every)) / 2
    for i, ratios in enumerate(found.ratios):
        for j, ratio in enumerate(ratios):
            colour = "black" if ratio > middle else "white"
            axis.text(j, i, f"{ratio:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="speed ÷ plain decoding")
    figure.savefig(file, dpi=160)
    plt.close(figure)
