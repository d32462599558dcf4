"""``specbranch bench``: speed, measured side by side in one run, and a report of it."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from specbranch.bench.answers import write_answers, write_tokenizer
from specbranch.bench.branch_costs import branch_costs
from specbranch.bench.contenders import ALWAYS_ON, Entrant, Pair
from specbranch.bench.environment import machine, pair_facts
from specbranch.bench.outside import outsiders
from specbranch.bench.placement import Placement, method_name
from specbranch.bench.report import Report, write_rounds
from specbranch.bench.run import RunFolder, first_ids, plan, run
from specbranch.bench.speed import Speed
from specbranch.bench.suites import PAPER_SUITES, TEN, Question, load_suite
from specbranch.cli.checks import check_counts
from specbranch.cli.pair import load_both, sampling_params
from specbranch.errors import InputError
from specbranch.models.loader import ModelSpec, load_tokenizer
from specbranch.models.pairs import find_pair
from specbranch.sampling_params import SamplingParams
from specbranch.zoo import PREDICTORS


@dataclass(frozen=True)
class Grid:
    """What is run, where the user did not say: enough for a table, for the paper's, or a glance.

    The paper's asks more questions once rather than fewer ones often: the clock's noise averages
    out alike, and what differs from question to question does, too.
    """

    drafts: list[str]
    suites: list[str]
    temperatures: list[float]
    limit: int
    repeats: int
    max_tokens: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Grid:
        whole = options.reproduce is not None
        quick = options.quick
        return cls(
            options.drafts or ([*PREDICTORS] if whole else [_named_draft(options)]),
            options.suites or ([*PAPER_SUITES] if whole else [TEN]),
            options.temperatures or ([0.0, 1.0] if whole else [0.0]),
            options.limit or ((1 if quick else 3) if whole else (3 if quick else 10)),
            options.repeats or (1 if quick or whole else 3),
            options.max_tokens or (48 if quick else 128),
        )


def _named_draft(options: argparse.Namespace) -> str:
    """The draft, or what it is called where the pair has one by default."""
    shipped = find_pair(options.pair).drafts if options.pair else {}
    draft: str = options.draft
    return next(iter(shipped), draft) if draft == "auto" else draft


def _settings(options: argparse.Namespace, grid: Grid) -> dict[str, Any]:
    """What a run that goes on must have in common with the one it goes on with."""
    names = ["pair", "target", "dtype", "padding", "top_k", "top_p", "min_p", "repetition_penalty"]
    names += ["seed", "prompt_tokens", "methods", "gamma", "epsilon", "k_max", "branching", "hrad"]
    names += ["retrieval", "speculate", "enforce_eager", "executor", "overlap", "reproduce"]
    names += ["quantization", "draft_quantization", "placements"]
    return asdict(grid) | {name: getattr(options, name) for name in names}


def _entrants(pair: Pair, options: argparse.Namespace) -> list[Entrant]:
    """Who takes part: everybody, or those asked for and what they are compared with."""
    ours = pair.field(pair.parallel.config)
    if "device-each" in options.placements:
        ours += pair.on_a_device_each(ours)
    if options.overlap:
        ours += pair.for_overlap(pair.parallel.config)
    asked = options.methods
    entrants: list[Entrant] = [*ours]
    # On a virtual clock their time is not the others' time, and they have no such target.
    comparable = pair.parallel.executor != "virtual" and not options.quantization
    if comparable and (not asked or any("transformers" in a for a in asked)):
        specs = [
            ModelSpec(name, options.dtype, device or options.device, options.sharded and not place)
            for place, (name, device) in enumerate(
                ((options.target, options.target_device), (options.draft, options.draft_device))
            )
        ]
        entrants += outsiders(pair.parallel, *specs)
    field = [method_name(entrant.name) for entrant in entrants if entrant.competes]
    if not asked:
        return entrants
    if unknown := set(asked) - set(field):
        known = ", ".join(dict.fromkeys(field))
        raise InputError(f"no method '{min(unknown)}' to measure: use {known}")
    # Overlap is measured by the one that is never turned off.
    kept = {"plain", "specbranch", *asked} | ({ALWAYS_ON} if options.overlap else set())
    return [
        entrant for entrant in entrants if method_name(entrant.name) in kept or not entrant.competes
    ]


def run_bench(options: argparse.Namespace) -> int:
    """Measure; 1 if any text differs from plain decoding's."""
    check_counts(options, "repeats", "limit", "prompt_tokens", "max_tokens")
    if options.acceptance != "coupled":
        raise InputError("texts can be compared with --acceptance coupled only")
    grid = Grid.of(options)
    options.branch_costs |= options.reproduce is not None
    options.max_tokens, options.seed = grid.max_tokens, options.seed or 0
    params = sampling_params(options)
    if any(temperature < 0 for temperature in grid.temperatures):
        raise InputError(f"temperature must be 0 (greedy) or more, not {min(grid.temperatures):g}")
    if "none" in grid.drafts:
        raise InputError("a comparison of methods needs a draft model")
    questions = [q for s in grid.suites for q in load_suite(s, grid.limit, options.data)]
    with ExitStack() as stack:
        out = options.out or Path(stack.enter_context(TemporaryDirectory()))
        folder = RunFolder(out, _settings(options, grid))
        try:
            for draft in grid.drafts:
                options.draft = draft
                _run_draft(options, grid, questions, params, folder)
        except KeyboardInterrupt:
            if not folder.heats():
                raise
            Console(stderr=True).print("interrupted: the report is of what is finished")
        return _report(options, folder)


def _run_draft(
    options: argparse.Namespace,
    grid: Grid,
    questions: list[Question],
    params: SamplingParams,
    folder: RunFolder,
) -> None:
    done = {heat.key for heat in folder.heats()}
    heats = list(plan(options.draft, grid.temperatures, grid.repeats, questions))
    left = [heat for heat in heats if heat.key not in done]
    costs = folder.folder / "branch_costs.json"
    known = json.loads(costs.read_text()) if costs.exists() else {}
    costing = options.branch_costs and options.draft not in known
    if not left and not costing:
        return
    if len(left) < len(heats):
        Console(stderr=True).print(f"{options.draft}: {len(heats) - len(left)} questions are done")
    pair = load_both(options)
    try:
        entrants = _entrants(pair, options)
        _remember(folder.folder, options.draft, pair_facts(pair, entrants))
        tokenizer = pair.parallel.tokenizer
        if left:
            run(entrants, left, tokenizer, params, options.prompt_tokens, folder)
        if costing:
            one_each = {q.suite: q for q in reversed(questions)}.values()
            most = options.prompt_tokens
            prompts = [first_ids(tokenizer, question.turns[0], most) for question in one_each]
            found = branch_costs(pair, prompts, max_tokens=grid.max_tokens, repeats=grid.repeats)
            known[options.draft] = [asdict(cost) for cost in found]
            costs.write_text(json.dumps(known, indent=2) + "\n")
    finally:
        pair.close()


def _remember(folder: Path, draft: str, facts: dict[str, Any]) -> None:
    file = folder / "environment.json"
    known = json.loads(file.read_text()) if file.exists() else {"pairs": {}}
    known = {"machine": machine(), "pairs": known["pairs"] | {draft: facts}}
    file.write_text(json.dumps(known, indent=2) + "\n")


def _report(options: argparse.Namespace, folder: RunFolder) -> int:
    heats = folder.heats()
    facts = json.loads((folder.folder / "environment.json").read_text())
    settings = json.loads((folder.folder / "settings.json").read_text())
    report = Report(folder.folder, heats, facts, settings)
    console = Console()
    last = report.speeds[-1].suite  # the mean, where there are several
    for _, rows in groupby(report.speeds, lambda r: (r.draft, r.temperature)):
        whole = [row for row in rows if row.suite == last]
        for placement in dict.fromkeys(row.placement for row in whole):
            placed = [row for row in whole if row.placement is placement]
            console.print(_table(placed, report.labels))
            if placement is Placement.EACH:
                console.print(_per_device(placed, report.labels))
    same, compared = report.texts
    console.print(f"plain decoding's tokens: {same} of {compared} texts")
    if options.out:
        written = report.write()
        (options.out / "speeds.json").write_text(
            json.dumps([asdict(row) for row in report.speeds], indent=2) + "\n"
        )
        write_rounds(heats, options.out / "rounds.jsonl")
        names = [*report.rows]
        write_answers(heats, names, options.out / "answers")
        write_tokenizer(load_tokenizer(options.target), options.out / "answers" / "tokenizer")
        console.print(f"wrote {', '.join(map(str, written))}")
    return int(same < compared)


def _table(rows: list[Speed], labels: dict[str, str]) -> Table:
    first = rows[0]
    sampling = "greedy" if first.temperature == 0 else f"temperature {first.temperature:g}"
    title = f"{first.draft}, {sampling}, {first.suite}: {first.questions} questions"
    table = _columns(f"{title}, {first.placement}", "tokens/s", "× plain", "M", "RB", "idle")
    for row in rows:
        table.add_row(
            labels[row.method],
            f"{row.tokens_per_second:.1f}",
            str(row.over_plain),
            f"{row.accepted:.2f}",
            f"{row.rollback:.2f}",
            "–" if row.idle is None else f"{100 * row.idle:.0f} %",
        )
    return table


def _per_device(rows: list[Speed], labels: dict[str, str]) -> Table:
    table = _columns("the same, per device", "devices", "tokens/s ÷ devices", "× plain")
    for row in rows:
        speed = f"{row.tokens_per_second / row.devices:.1f}"
        table.add_row(labels[row.method], str(row.devices), speed, str(row.per_device))
    return table


def _columns(title: str, *headings: str) -> Table:
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
