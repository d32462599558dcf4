"""The report of a run: Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from specbranch.bench import paper, plots
from specbranch.bench.branch_costs import HEADINGS, BranchCost, plot, table
from specbranch.bench.contenders import ALWAYS_ON, PLAIN, SPECBRANCH
from specbranch.bench.overlap import overlap
from specbranch.bench.placement import Placement
from specbranch.bench.predicted import predictions
from specbranch.bench.report_parts import (
    Figure,
    Section,
    Table,
    file_name,
    has_matplotlib,
    sampling,
    unique,
    words,
)
from specbranch.bench.report_speed import (
    METHODS,
    PLACEMENTS,
    category_sections,
    disturbed_section,
    regimes,
    speed_tables,
)
from specbranch.bench.run import Heat, identical
from specbranch.bench.speed import ALL, Speed, speeds
from specbranch.engine import timeline

FOR_THE_REPORT = ("labels", "rows", "exact", "devices")  # of a pair, and no fact for people


class Report:
    """Puts the report of a run together.

    Args:
        folder: where it is written.
        heats: what was run; at least one.
        facts: of the machine and, by draft, of the pairs (see `environment`).
        settings: of the run.
    """

    def __init__(
        self,
        folder: Path,
        heats: Sequence[Heat],
        facts: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self._folder, self._heats, self._facts, self._settings = folder, heats, facts, settings
        pairs = facts["pairs"].values()
        self.labels: dict[str, str] = {k: v for pair in pairs for k, v in pair["labels"].items()}
        self.rows = list(dict.fromkeys(name for pair in pairs for name in pair["rows"]))
        devices = {k: v for pair in pairs for k, v in pair["devices"].items()}
        self.speeds = speeds(heats, self.rows, devices=devices)
        self.texts = identical(
            heats, {name: pair["exact"] for name, pair in facts["pairs"].items()}
        )
        self._draws = has_matplotlib()
        (folder / "figures").mkdir(exist_ok=True)

    def write(self) -> list[Path]:
        """Write ``report.md`` and ``report.html``; returns what was written."""
        sections = [self._speed()]
        sections += category_sections(self._heats, self.rows, self.labels)
        sections += disturbed_section(self._heats, self.rows, self.labels)
        sections += [self._drafting(), *self._executors()]
        sections += [*self._branches(), *self._theory(), *self._paper(), self._environment()]
        same, compared = self.texts
        lead = (
            f"{len(self._heats)} runs of a question by {len(self.rows)} methods, interleaved. "
            f"{same} of {compared} texts are plain decoding's own, token by token."
        )
        loader = PackageLoader("specbranch.bench")
        written = []
        for suffix, escape in (("md", False), ("html", True)):
            templates = Environment(loader=loader, autoescape=escape, undefined=StrictUndefined)
            page = templates.get_template(f"report.{suffix}.j2").render(
                title=self._title, lead=lead, sections=sections, ours=self.labels[SPECBRANCH]
            )
            written.append(self._folder / f"report.{suffix}")
            written[-1].write_text(page.rstrip() + "\n", encoding="utf-8")
        return written

    @property
    def _title(self) -> str:
        drafts = " and ".join(self._facts["pairs"])
        if pair := self._settings["pair"]:
            return f"SpecBranch benchmark: the pair {pair}"
        return f"SpecBranch benchmark: {self._settings['target']} with {drafts}"

    def _speed(self) -> Section:
        section = Section("Speed", [METHODS])
        section.texts += [text for p, text in PLACEMENTS.items() if p in self._placements]
        for draft, temperature in regimes(self.speeds):
            regime = f"{draft}, {sampling(temperature)}"
            for placement in self._placements:
                which = (draft, temperature, placement)
                found = [r for r in self.speeds if (r.draft, r.temperature, r.placement) == which]
                section.tables += speed_tables(found, self.labels, regime)
                place = file_name(str(placement).replace(" ", "-"))
                section.figures += self._figure(
                    f"speed-{file_name(draft)}-temp{temperature:g}-{place}.svg",
                    f"{regime}: speed over plain decoding, {placement}",
                    partial(plots.speed_up, found, self.labels),
                )
        return section

    @property
    def _placements(self) -> list[Placement]:
        return list(dict.fromkeys(row.placement for row in self.speeds))

    def _drafting(self) -> Section:
        first = regimes(self.speeds)[0][1]
        greedy = [heat for heat in self._heats if heat.temperature == first]
        section = Section(
            "What becomes of drafted tokens",
            [
                "The law is the truncated geometric one: every token is accepted with the same α, "
                "whatever was before it. Where the first tokens of a chain are accepted more or "
                "less often than later ones, the bars leave it."
            ],
        )
        rows = [r for r in self.equal if r.suite == ALL or self._one_suite]
        rows = [r for r in rows if r.temperature == first]
        section.figures += self._figure(
            "rollback.svg", "RB by method", partial(plots.rollback, rows, self.labels)
        )
        section.figures += self._figure(
            "accepted.svg",
            "Accepted tokens of a chain, measured and by the truncated geometric law",
            partial(plots.accepted_lengths, greedy, self.labels),
        )
        names = [n for n in (PLAIN, "sps-8", "pearl-8", ALWAYS_ON) if n in self.rows]
        heat = greedy[0]
        shown = {self.labels[n]: plots.beginning(heat.answers[n][0].rounds) for n in names}
        section.figures += self._figure(
            "timeline.svg",
            f"The first {plots.SHOWN} tokens of {heat.question.suite} {heat.question.id}, "
            f"{heat.draft}: what target and draft did when",
            partial(timeline.save, shown),
        )
        return section

    @property
    def equal(self) -> list[Speed]:
        """The rows of equal hardware."""
        return [row for row in self.speeds if row.placement is Placement.EQUAL]

    @property
    def _one_suite(self) -> bool:
        return len({heat.question.suite for heat in self._heats}) == 1

    def _executors(self) -> list[Section]:
        rows = []
        for draft in self._facts["pairs"]:
            found = overlap([h for h in self._heats if h.draft == draft and h.temperature == 0])
            if found:
                rows.append([draft, *(f"{value:.3f}" for value in asdict(found).values())])
        if not rows:
            return []
        headings = ["draft", "round ÷ longer executor", "target idle", "idle after a hit"]
        headings += ["gain over sequential models", "slow-down of the target", "c"]
        text = (
            "Gain: decoding time of the same texts with the models sequentially, each on all "
            "cores, ÷ that of SpecBranch. Slow-down: a verification beside a working draft ÷ one "
            "of as many tokens alone on the same cores. c: median verification ÷ median draft step."
        )
        return [Section("How the executors overlap", [text], [Table(headings, rows)])]

    def _branches(self) -> list[Section]:
        """Only where it was measured."""
        file = self._folder / "branch_costs.json"
        if not file.exists():
            return []
        text = (
            "Draft step: one of k branches, beside a verification. Planning: choosing k outcomes "
            "and forking the cache. Message: a round's branch call on its way there and back. KV "
            "held: of the draft, beyond the text, when the verification has ended; share: of both "
            "models' keys and values of the text. Slow-down: the target's forward beside the "
            "branches ÷ the same one with the draft idle. Speed: SpecBranch with at most k "
            "branches, without retrieval, median and range of the repeats."
        )
        section = Section("What k branches cost", [text])
        for draft, rows in json.loads(file.read_text()).items():
            costs = [BranchCost.from_json(row) for row in rows]
            section.tables.append(Table(HEADINGS, table(costs), draft))
            section.figures += self._figure(
                f"branches-{file_name(draft)}.svg", draft, partial(plot, costs)
            )
        return [section]

    def _theory(self) -> list[Section]:
        equal = [name for name in self.rows if Placement.of(name) is Placement.EQUAL]
        found = predictions(self._heats, equal)
        if not found:
            return []
        rows = [
            [
                f"{self.labels[p.method]}, {p.draft}",
                f"{p.alpha:.2f}",
                f"{p.gamma:.3g}",
                f"{p.c:.1f}",
                f"{p.hit:.2f}" if p.hit else "–",
                f"{p.predicted:.2f}",
                f"{p.measured:.2f}",
                f"{100 * p.error:+.0f} %",
            ]
            for p in found
        ]
        headings = ["method", "α", "γ", "c", "hits", "predicted ×", "measured ×", "error"]
        text = (
            "Speed over plain decoding by the formulas of specbranch.bench.theory, with "
            "acceptance and times as measured, greedy, without the reading of the prompt. A "
            "formula takes every "
            "position for as likely accepted as any other, and counts no time but the forwards'."
        )
        return [Section("Predicted and measured", [text], [Table(headings, rows)])]

    def _paper(self) -> list[Section]:
        if not self._settings.get("reproduce"):
            return []
        section = Section("The paper's figures beside ours", [paper.DIFFERENCES])
        headings, rows = paper.beside(self.speeds, self.labels)
        section.tables.append(Table(headings, rows, "Speed over plain decoding, greedy", True))
        headings, rows = paper.rollbacks(self.equal, self.labels)
        if rows:
            caption = "Rolled-back ÷ all drafted tokens, HumanEval, greedy"
            section.tables.append(Table(headings, rows, caption))
        return [section]

    def _environment(self) -> Section:
        rows = [[name, words(value)] for name, value in self._facts["machine"].items()]
        for draft, pair in self._facts["pairs"].items():
            shown = {k: v for k, v in pair.items() if k not in FOR_THE_REPORT}
            rows += [[f"{draft}: {name}", words(value)] for name, value in shown.items()]
        rows += [[f"run: {name}", words(value)] for name, value in self._settings.items()]
        text = "The same questions for all, method after method within each; fixed seeds."
        return Section("What ran where", [text], [Table(["what", "value"], rows, words=True)])

    def _figure(self, name: str, caption: str, draw: Callable[[Path], None]) -> list[Figure]:
        """Draw where there is matplotlib."""
        if not self._draws:
            return []
        file = self._folder / "figures" / name
        draw(file)
        text = re.sub(r"<metadata>.*?</metadata>", "", file.read_text(), flags=re.DOTALL)
        return [Figure(f"figures/{name}", unique(text[text.index("<svg") :], name), caption)]


def write_rounds(heats: Sequence[Heat], file: Path) -> None:
    """One JSON line a round of any text, with what it belongs to; times in seconds."""
    with file.open("w") as lines:
        for heat in heats:
            keys = ("draft", "temperature", "repeat", "suite", "question")
            common = dict(zip(keys, heat.key, strict=True))
            for name, turns in heat.answers.items():
                for number, turn in enumerate(turns):
                    for place, done in enumerate(turn.rounds):
                        where = {"method": name, "turn": number, "round": place}
                        lines.write(json.dumps(common | where | asdict(done)) + "\n")
