"""The report's tables of speed, one for each placement, and what disturbed the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specbranch.bench.placement import Placement, method_name
from specbranch.bench.report_parts import Section, Table, bare, details, sampling, subtask
from specbranch.bench.run import Heat
from specbranch.bench.speed import ALL, Speed, disturbed, speeds

METHODS = (
    "M is the number of tokens committed per target call, RB the rolled-back share of the tokens "
    "drafted on the main path; idle is the share of the decoding time in which the target verified "
    "nothing. Tokens a second are means over the questions, each the median of its repeats, time "
    "of reading the prompt included. Intervals are 95 % bootstrap intervals over the questions."
)
PLACEMENTS = {
    Placement.EQUAL: (
        "Equal hardware: every method has all cores, and uses them as it is fastest. SpecBranch "
        "and PEARL split them between the models, all others run the models sequentially, each on "
        "all cores."
    ),
    Placement.EACH: (
        "A device each: the target has its share of the cores and the draft the others, for every "
        "method; a method without a draft has the target's share alone. Per device: the same "
        "tokens a second ÷ the devices that a method takes."
    ),
}
SHOWN = 8  # disturbed runs


def regimes(rows: Sequence[Speed]) -> list[tuple[str, float]]:
    """Draft and temperature, in order of appearance."""
    return list(dict.fromkeys((row.draft, row.temperature) for row in rows))


def by_part(
    rows: Sequence[Speed],
    labels: dict[str, str],
    caption: str,
    cell: Callable[[Speed], str] = lambda row: str(row.over_plain),
) -> Table:
    """Methods down, suites (or other parts) across."""
    parts = list(dict.fromkeys(row.suite for row in rows))
    cells = {(row.method, row.suite): cell(row) for row in rows}
    names = dict.fromkeys(row.method for row in rows)
    counts = {row.suite: row.questions for row in rows}
    return Table(
        ["method", *(f"{part} ({counts[part]})" for part in parts)],
        [[labels[n], *(cells.get((n, part), "–") for part in parts)] for n in names],
        caption,
    )


def speed_tables(rows: Sequence[Speed], labels: dict[str, str], regime: str) -> list[Table]:
    """Of one draft, temperature and placement."""
    placement = rows[0].placement
    tables = [by_part(rows, labels, f"{regime}: × plain decoding, {placement}")]
    if placement is Placement.EACH:
        caption = f"{regime}: × plain decoding, per device"
        tables.append(by_part(rows, labels, caption, lambda row: str(row.per_device)))
    return [*tables, details(rows, labels, f"{regime}, {placement}")]


def category_sections(
    heats: Sequence[Heat], names: Sequence[str], labels: dict[str, str]
) -> list[Section]:
    """By category, only where a suite has several; on equal hardware."""
    several = [h for h in heats if h.question.category != h.question.suite]
    if len({h.question.category for h in several}) < 2:
        return []
    section = Section("By category", ["Few questions each: see the intervals above."])
    equal = [name for name in names if Placement.of(name) is Placement.EQUAL]
    found = speeds(several, equal, part=lambda question: subtask(question.category))
    for draft, temperature in regimes(found):
        rows = [r for r in found if (r.draft, r.temperature) == (draft, temperature)]
        rows = [r for r in rows if r.suite != ALL]
        caption = f"{draft}, {sampling(temperature)}: × plain decoding, equal hardware"
        section.tables.append(by_part(rows, labels, caption, bare))
    return [section]


def disturbed_section(
    heats: Sequence[Heat], names: Sequence[str], labels: dict[str, str]
) -> list[Section]:
    """Runs that took much longer than their repeats: in no figure, since medians are."""
    found = disturbed(heats, names)
    if not found:
        return []
    runs = sum(name in heat.answers for heat in heats for name in names)
    rows = [
        [
            f"{run.heat.draft}, {sampling(run.heat.temperature)}",
            f"{run.heat.question.suite} {run.heat.question.id}, repeat {run.heat.repeat}",
            f"{labels[method_name(run.name)]}, {Placement.of(run.name)}",
            f"{run.times:.1f} ×",
        ]
        for run in found[:SHOWN]
    ]
    text = (
        f"{len(found)} of {runs} runs took more than 1.5 times the median of their repeats. The "
        f"worst of them:"
    )
    headings = ["draft", "question", "method", "time ÷ median"]
    return [Section("Disturbed runs", [text], [Table(headings, rows)])]
