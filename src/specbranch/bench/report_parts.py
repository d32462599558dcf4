"""Tables, figures and sections of a report, and how their cells are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specbranch.bench.contenders import SPECBRANCH
from specbranch.bench.speed import Speed

MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells; `words` are cells of text rather than of figures."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing, as a file beside the report and as SVG."""

    file: str
    svg: str
    caption: str


@dataclass
class Section:
    """A part of the report."""

    title: str
    texts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def details(rows: Sequence[Speed], labels: dict[str, str], regime: str) -> Table:
    last = rows[-1].suite  # the mean, where there are several
    headings = ["method", "tokens/s", "M", "RB", "target calls / 100 tokens", "target idle"]
    cells = [
        [
            labels[row.method],
            f"{row.tokens_per_second:.1f}",
            f"{row.accepted:.2f}",
            f"{row.rollback:.2f}" if row.rollback or row.method == SPECBRANCH else "–",
            f"{row.calls:.1f}",
            f"{100 * row.idle:.0f} %" if row.idle is not None else "–",
        ]
        for row in rows
        if row.suite == last
    ]
    return Table(headings, cells, f"{regime}, {last}: how")


def bare(row: Speed) -> str:
    return f"{row.over_plain.value:.2f}"


def sampling(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def subtask(category: str) -> str:
    """Spec-Bench's six subtasks: the eight categories of MT-bench are one of them."""
    return "mt_bench" if category in MT_BENCH else category


def words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {words(v)}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value)) or "none"
    return str(value)


def unique(svg: str, name: str) -> str:
    """Names within a drawing, told from those of the page's other drawings."""
    stem = name.removesuffix(".svg")
    for mark in ('id="', "url(#", 'xlink:href="#'):
        svg = svg.replace(mark, f"{mark}{stem}-")
    return svg


def file_name(draft: str) -> str:
    return draft.replace("/", "--")


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True
