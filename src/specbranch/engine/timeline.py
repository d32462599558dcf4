"""What the executors did when: idle time, a Gantt chart, and a trace for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbranch.errors import InputError
from specbranch.metrics import Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png", ".json")


@dataclass(frozen=True)
class Bar:
    """One executor call.

    Attributes:
        executor: `target` or `draft`.
        kind: `verify`, `draft` (a serial draft stage) or `branch`.
        round: which one, from 0.
        start, end: seconds on the executors' clock.
        tokens: verified or drafted: of a branch stage, on all branches together.
        branches: candidates prepared.
        committed: tokens that the round committed.
        outcome: of the round.
    """

    executor: str
    kind: str
    round: int
    start: float
    end: float
    tokens: int
    branches: int
    committed: int
    outcome: str


def bars(rounds: Sequence[Round]) -> list[Bar]:
    """Every executor call of a generation, in order of its start."""
    found = []
    for number, done in enumerate(rounds):
        calls = (
            ("draft", "draft", done.drafting, done.chain),
            ("draft", "branch", done.branching, done.branch_tokens),
            ("target", "verify", done.verification, done.chain + 1),
        )
        for executor, kind, span, tokens in calls:
            if span is not None:
                found.append(
                    Bar(
                        executor,
                        kind,
                        number,
                        span.start,
                        span.end,
                        tokens,
                        done.branches if kind == "branch" else 0,
                        len(done.tokens),
                        done.outcome,
                    )
                )
    return sorted(found, key=lambda bar: bar.start)


def target_idle(generations: Iterable[Sequence[Round]], steady: bool = False) -> float:
    """CpuAffinity of the decoding time in which the target verified nothing, over all generations.

    Args:
        steady: of the rounds after a hit alone, from the end of the hit's verification on.
    """
    waited = total = 0.0
    for rounds in generations:
        for last, done in pairwise(rounds):
            if last.verification is None or done.verification is None:
                continue
            if steady and last.outcome != "hit":
                continue
            waited += done.verification.start - last.verification.end
            total += done.verification.end - last.verification.end
    return waited / total if total else 0.0


def check_file(file: Path) -> None:
    """Refuse, before anything is generated, a timeline that could not be written.

    Raises:
        InputError: an unknown kind of file, no such folder, or no plotting library.
    """
    if file.suffix not in SUFFIXES:
        raise InputError(f"a timeline is .svg, .png or .json, not '{file.name}'")
    if not file.absolute().parent.is_dir():
        raise InputError(f"cannot write {file}: no folder {file.absolute().parent}")
    if file.suffix != ".json":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise InputError(
                "drawing a timeline needs matplotlib: pip install 'specbranch[plots]', "
                "or ask for a .json trace"
            ) from None


def save(generations: Mapping[str, Sequence[Round]], file: Path) -> None:
    """Write the timelines of one or more generations, stacked, by their labels.

    Args:
        file: .svg or .png for a chart; .json for Chrome's trace format, which Perfetto opens.

    Raises:
        InputError: as `check_file`.
    """
    check_file(file)
    if file.suffix == ".json":
        file.write_text(json.dumps(chrome_trace(generations)))
    else:
        _draw(generations, file)


def chrome_trace(generations: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Chrome's trace event format: a process for each generation, a thread for each executor."""
    events: list[dict[str, Any]] = []
    for process, (label, rounds) in enumerate(generations.items()):
        events.append(_named("process_name", process, 0, label))
        found = bars(rounds)
        for thread, executor in enumerate(("target", "draft")):
            events.append(_named("thread_name", process, thread, executor))
            ours = [bar for bar in found if bar.executor == executor]
            events += [_event(bar, process, thread, found[0].start) for bar in ours]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(bar: Bar, process: int, thread: int, origin: float) -> dict[str, Any]:
    shown = ("round", "outcome", "tokens", "branches", "committed")
    return {
        "name": bar.kind,
        "cat": bar.outcome,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": 1e6 * (bar.start - origin),
        "dur": 1e6 * (bar.end - bar.start),
        "args": {name: getattr(bar, name) for name in shown},
    }


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


# Colour, hatch and meaning of a bar; the first that fits counts.
_VERIFY = ("#4c72b0", "", "verification (tokens committed)")
_DRAFT = ("#b5b5b5", "", "draft stage: the target waits")
_BRANCH = {
    "hit": ("#4fa36c", "", "branches, one survives"),
    "miss": ("#e9a23b", "", "branches, none survives (miss)"),
    "rollback": ("#d1495b", "////", "branches rolled back"),
    "end": ("#9ecbaf", "", "branches, the text ended"),
}
_BUBBLE = ("#f3e3e3", "", "bubble: the target is idle")


def _look(bar: Bar) -> tuple[str, str, str]:
    if bar.kind == "verify":
        return _VERIFY
    return _DRAFT if bar.kind == "draft" else _BRANCH[bar.outcome]


def _draw(generations: Mapping[str, Sequence[Round]], file: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    panels = {label: bars(rounds) for label, rounds in generations.items()}
    executors = {label: _executors(found) for label, found in panels.items()}
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(11, 0.7 + 0.35 * len(panels) + 0.3 * sum(map(len, executors.values()))),
        height_ratios=[len(used) + 0.2 for used in executors.values()],
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    looks: dict[str, tuple[str, str, str]] = {}
    for axis, (label, found) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(axis, label, found, target_idle([generations[label]]))
        looks |= {_look(bar)[2]: _look(bar) for bar in found}
    axes[-1, 0].set_xlabel("ms from the first draft or verification", fontsize=9)
    looks[_BUBBLE[2]] = _BUBBLE
    patches = [
        Patch(facecolor=colour, hatch=hatch, label=meaning, edgecolor="white")
        for meaning, (colour, hatch, _) in looks.items()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(file, dpi=160)
    plt.close(figure)


def _executors(found: Sequence[Bar]) -> list[str]:
    """Those that did something, and the target."""
    return ["target", "draft"] if any(bar.executor == "draft" for bar in found) else ["target"]


def _draw_panel(axis: Axes, label: str, found: Sequence[Bar], idle: float) -> None:
    """Two rows, target above draft."""
    axis.set_title(label, loc="left", fontsize=9, fontweight="bold", pad=2)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False, labelsize=8)
    if not found:
        return
    begun, ended = found[0].start, max(bar.end for bar in found)
    rows = {executor: -place for place, executor in enumerate(_executors(found))}
    axis.set_yticks([*rows.values()], labels=[*rows], fontsize=8)
    axis.set_ylim(-len(rows) + 0.5, 0.5)
    axis.barh(0, 1e3 * (ended - begun), height=0.86, color=_BUBBLE[0])
    for bar in found:
        colour, hatch, _ = _look(bar)
        left, width = 1e3 * (bar.start - begun), 1e3 * (bar.end - bar.start)
        axis.barh(
            rows[bar.executor],
            width,
            left=left,
            height=0.86,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
        )
        if bar.kind == "verify":
            axis.text(
                left + width / 2,
                rows["target"],
                str(bar.committed),
                ha="center",
                va="center",
                color="white",
                fontsize=7,
                clip_on=True,
            )
    committed = sum(bar.committed for bar in found if bar.kind == "verify")
    summary = (
        f"{committed} tokens in {1e3 * (ended - begun):.0f} ms, target idle {100 * idle:.0f} %"
    )
    axis.set_title(summary, loc="right", fontsize=8, color="#555555", pad=2)
