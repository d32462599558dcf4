"""Figures of a benchmark's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specbranch.bench.contenders import ALWAYS_ON, PAPER, PLAIN, SPECBRANCH
from specbranch.bench.run import Heat
from specbranch.bench.speed import Speed
from specbranch.bench.theory import accepted_probability
from specbranch.metrics import Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS, OUTSIDE = "#d1495b", "#7d93b5", "#b5b5b5"
SHOWN = 48  # tokens of a timeline


def color(name: str) -> str:
    """SpecBranch stands out; `transformers` stands back."""
    if name.startswith("specbranch"):
        return OURS if name == SPECBRANCH else "#e5a0a9"
    return OUTSIDE if name.startswith("transformers") else OTHERS


def _finish(figure: Figure, file: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(file)
    plt.close(figure)


def _bar_panels(titles: Sequence[str], bars: Sequence[str]) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side for horizontal bars of the same names, the first one on top."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(titles),
        figsize=(3.2 + 2.4 * len(titles), 0.9 + 0.27 * len(bars)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
        _plain(axis)
    axes[0][0].set_yticks(range(len(bars)), [*reversed(bars)], fontsize=8)
    return figure, axes[0]


def speed_up(rows: Sequence[Speed], labels: Mapping[str, str], file: Path) -> None:
    """Bars of speed-up over plain decoding, a panel a suite, with intervals."""
    suites = list(dict.fromkeys(row.suite for row in rows))
    names = [name for name in dict.fromkeys(row.method for row in rows) if name != PLAIN]
    figure, axes = _bar_panels(suites, [labels[name] for name in names])
    for axis, suite in zip(axes, suites, strict=True):
        found = {row.method: row.over_plain for row in rows if row.suite == suite}
        for place, name in enumerate(reversed(names)):
            if name not in found:
                continue
            ratio = found[name]
            axis.barh(place, ratio.value, color=color(name), height=0.72)
            if ratio.low is not None and ratio.high is not None:
                axis.plot([ratio.low, ratio.high], [place, place], color="#333333", linewidth=1)
            axis.text(0.06, place, f"{ratio.value:.2f}", va="center", fontsize=7, color="white")
        axis.axvline(1, color="#333333", linewidth=0.8, linestyle=":")
    figure.supxlabel(f"speed ÷ plain decoding, {rows[0].placement}", fontsize=8)
    _finish(figure, file)


def rollback(rows: Sequence[Speed], labels: Mapping[str, str], file: Path) -> None:
    """Bars of RB, a panel a draft."""
    drafts = list(dict.fromkeys(row.draft for row in rows))
    drafting = [row.method for row in rows if row.rollback or row.method == SPECBRANCH]
    names = list(dict.fromkeys(drafting))
    figure, axes = _bar_panels(drafts, [labels[name] for name in names])
    for axis, draft in zip(axes, drafts, strict=True):
        found = {row.method: row.rollback for row in rows if row.draft == draft}
        for place, name in enumerate(reversed(names)):
            axis.barh(place, found.get(name, 0), color=color(name), height=0.72)
            axis.text(found.get(name, 0) + 0.01, place, f"{found.get(name, 0):.2f}", **_SMALL)
        axis.set_xlim(0, 1.08)
    figure.supxlabel("RB: rolled-back tokens ÷ tokens drafted on the main path", fontsize=8)
    _finish(figure, file)


_SMALL: dict[str, Any] = {"va": "center", "fontsize": 7}


def accepted_lengths(heats: Sequence[Heat], labels: Mapping[str, str], file: Path) -> None:
    """How many tokens of a chain are accepted, beside the truncated geometric law of the same α.

    Chains of several lengths have the laws of each, mixed.
    """
    import matplotlib.pyplot as plt

    drafts = list(dict.fromkeys(heat.draft for heat in heats))
    named = ("sps-8", "pearl-8", ALWAYS_ON, PAPER)
    names = [n for n in named if n in heats[0].answers] or [SPECBRANCH]
    figure, axes = plt.subplots(
        len(drafts),
        len(names),
        figsize=(1 + 2.5 * len(names), 0.6 + 2 * len(drafts)),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    for row, draft in zip(axes, drafts, strict=True):
        for axis, name in zip(row, names, strict=True):
            turns = [t for h in heats if h.draft == draft for t in h.answers[name]]
            _lengths(axis, [done for turn in turns for done in turn.rounds if done.chain])
            axis.set_title(f"{labels[name]}, {draft}", fontsize=8)
            _plain(axis)
    row[0].legend(fontsize=7, frameon=False)
    figure.supxlabel("tokens accepted of a chain", fontsize=8)
    figure.supylabel("share of rounds", fontsize=8)
    _finish(figure, file)


def _lengths(axis: Axes, rounds: Sequence[Round]) -> None:
    if not rounds:
        return
    longest = max(done.chain for done in rounds)
    found = np.bincount([done.accepted for done in rounds], minlength=longest + 1) / len(rounds)
    accepted = sum(done.accepted for done in rounds)
    alpha = accepted / max(1, accepted + sum(done.accepted < done.chain for done in rounds))
    chains = np.bincount([done.chain for done in rounds], minlength=longest + 1) / len(rounds)
    law = [
        sum(
            chains[gamma] * accepted_probability(alpha, gamma, k) for gamma in range(1, longest + 1)
        )
        for k in range(longest + 1)
    ]
    axis.bar(range(longest + 1), found, color=OTHERS, label="measured")
    axis.plot(
        range(longest + 1), law, "o-", color="#333333", markersize=3, linewidth=1, label="law"
    )
    axis.text(0.97, 0.9, f"α = {alpha:.2f}", transform=axis.transAxes, ha="right", fontsize=7)


def beginning(rounds: Sequence[Round]) -> list[Round]:
    """The rounds that commit the first so many tokens."""
    shown: list[Round] = []
    while len(shown) < len(rounds) and sum(len(done.tokens) for done in shown) < SHOWN:
        shown.append(rounds[len(shown)])
    return shown


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
