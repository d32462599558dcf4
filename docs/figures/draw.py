"""Draws the diagrams of `docs/how-it-works.md`: ``python docs/figures/draw.py``.

They are SVG written by hand, so that they need no library and change only when the method does.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
BLUE, GREEN, RED, GREY, PALE, INK = "#4c72b0", "#55a868", "#c44e52", "#b8b8b8", "#f4e4e4", "#222"
SOFT_BLUE, SOFT_GREEN, SOFT_GREY = "#e3eaf5", "#e2f1e6", "#f2f2f2"


class Drawing:
    """Shapes on a white ground; coordinates are pixels from the top left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="{FONT}" role="img">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            'markerHeight="7" orient="auto-start-reverse">'
            f'<path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 14,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        lines: str = "",
        *,
        fill: str = "white",
        stroke: str = "none",
        colour: str = INK,
        size: int = 14,
        dashed: bool = False,
    ) -> None:
        """A rectangle with centred lines; the first is bold where there are several."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"{dash}/>'
        )
        rows = lines.split("\n") if lines else []
        top = y + height / 2 - (len(rows) - 1) * (size + 4) / 2 + size * 0.35
        for i, row in enumerate(rows):
            first = i == 0 and len(rows) > 1
            self.text(
                x + width / 2,
                top + i * (size + 4),
                row,
                size=size if first or len(rows) == 1 else size - 2,
                colour=colour,
                bold=first,
            )

    def line(
        self,
        points: list[tuple[float, float]],
        *,
        colour: str = INK,
        tip: bool = True,
        both: bool = False,
        dashed: bool = False,
        width: float = 1.6,
    ) -> None:
        path = " ".join(f"{x},{y}" for x, y in points)
        ends = ' marker-end="url(#tip)"' * (tip or both) + ' marker-start="url(#tip)"' * both
        dash = ' stroke-dasharray="5 4"' * dashed
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="{width}"{ends}{dash}/>'
        )

    def save(self, name: str) -> None:
        (HERE / name).write_text("\n".join([*self._parts, "</svg>"]) + "\n", encoding="utf-8")


def draw_rounds() -> None:
    """Three rounds in time: a hit, a rollback, and the draft stage that a rollback costs."""
    d = Drawing(900, 250, "Rounds: verification beside branches")
    target, draft, high = 50, 120, 46
    for y, name in ((target, "target"), (draft, "draft")):
        d.text(70, y + 28, name, anchor="end", bold=True)
    d.box(80, target, 90, high, "waits", fill=PALE, colour="#777")
    d.box(80, draft, 90, high, "draft stage", fill=GREY)
    d.box(180, target, 170, high, "verify chain 1", fill=BLUE, colour="white")
    d.box(180, draft, 170, high, "branches", fill=GREEN, colour="white")
    d.box(370, target, 170, high, "verify chain 2", fill=BLUE, colour="white")
    d.box(370, draft, 170, high, "branches", fill=RED, colour="white")
    d.box(560, target, 82, high, "waits", fill=PALE, colour="#777")
    d.box(560, draft, 82, high, "draft stage", fill=GREY)
    d.box(660, target, 170, high, "verify chain 3", fill=BLUE, colour="white")
    d.box(660, draft, 170, high, "branches", fill=GREEN, colour="white")
    d.line([(350, draft + 23), (360, draft + 23), (360, target + 23), (369, target + 23)])
    d.line([(642, draft + 23), (650, draft + 23), (650, target + 23), (659, target + 23)])
    for left, right, label in (
        (80, 350, "round 1"),
        (370, 540, "round 2"),
        (560, 830, "round 3"),
    ):
        d.line([(left, 30), (right, 30)], tip=False, colour="#999", width=1)
        d.text((left + right) / 2, 22, label, size=13, colour="#555")
    d.text(360, 190, "hit: a branch foresaw the outcome;", size=13)
    d.text(360, 208, "what it drafted is the next chain", size=13)
    d.text(605, 190, "rollback: no branch did;", size=13)
    d.text(605, 208, "the target waits for a new draft", size=13)
    d.line([(80, 232), (860, 232)], colour="#999", width=1)
    d.text(868, 236, "time", size=12, colour="#777", anchor="start")
    d.save("rounds.svg")


def draw_tree() -> None:
    """The drafter's tree in one round, and what becomes of each part."""
    d = Drawing(900, 380, "The tree of branches in one round")
    w, h = 74, 34

    def token(x: float, y: float, word: str, fill: str, *, white: bool = True) -> None:
        d.box(x, y, w, h, word, fill=fill, colour="white" if white else INK)

    d.box(20, 150, 150, h, "def quicksort(xs):", fill=SOFT_GREY, stroke=GREY, size=13)
    d.text(95, 140, "committed prefix", size=12, colour="#555")
    chain = ((200, "if", "0.98", BLUE), (310, "len", "0.93", BLUE), (420, "[", "0.41", RED))
    for x, word, acceptance, fill in chain:
        d.line([(x - 30 if x == 200 else x - 36, 167), (x - 1, 167)])
        token(x, 150, word, fill)
        d.text(x + w / 2, 202, acceptance, size=12, colour="#555")
    d.text(335, 224, "the chain, which the target verifies,", size=12, colour="#555")
    d.text(335, 240, "and the estimated acceptance", size=12, colour="#555")

    def branch(start: float, y: float, words: str, fill: str, note: str) -> None:
        fork = start + w + 14
        d.line([(start + w, 167), (fork, 167), (fork, y + h / 2), (fork + 21, y + h / 2)])
        x = fork + 22
        for i, word in enumerate(words.split()):
            if i:
                d.line([(x - 16, y + h / 2), (x - 1, y + h / 2)])
            token(x, y, word, fill)
            x += w + 16
        d.text(x, y + h / 2 + 5, note, size=13, anchor="start")

    branch(310, 70, "( xs )", GREEN, "outcome (2, “(”): the survivor")
    branch(200, 10, "not xs :", GREY, "outcome (1, “not”): hedged")
    branch(420, 240, "0 ]", GREY, "outcome (3, “0”): hedged")
    branch(420, 300, "1 :", GREY, "outcome (3, “1”): hedged")
    d.text(
        20,
        364,
        "The target accepts “if len” and says “(” instead of “[”: three tokens are committed, and "
        "“xs )” is the next chain.",
        size=13,
        anchor="start",
    )
    d.save("tree.svg")


def draw_architecture() -> None:
    """Who calls whom."""
    d = Drawing(900, 430, "The parts of SpecBranch")
    d.box(250, 15, 400, 44, "LLM, model.generate hook, command line", fill=SOFT_GREY, stroke=GREY)
    d.line([(450, 59), (450, 84)])
    d.box(40, 85, 820, 160, fill="white", stroke=GREY, dashed=True)
    d.text(52, 105, "Engine: add_request, abort, step", anchor="start", bold=True)
    d.box(60, 130, 190, 92, "Scheduler\nwhich text\nadvances next", fill=SOFT_GREY, stroke=GREY)
    d.box(355, 130, 190, 92, "Driver\nruns one round\nof one text", fill=SOFT_GREY, stroke=GREY)
    d.box(
        650,
        130,
        190,
        92,
        "Method (one a text)\nplan, absorb:\na state machine",
        fill=SOFT_GREY,
        stroke=GREY,
    )
    d.line([(250, 176), (353, 176)])
    d.text(302, 168, "a text", size=12, colour="#555")
    d.line([(547, 160), (648, 160)], both=True)
    d.text(598, 152, "plan", size=12, colour="#555")
    d.line([(547, 195), (648, 195)])
    d.text(598, 212, "results", size=12, colour="#555")
    d.line([(400, 222), (250, 272)])
    d.line([(500, 222), (650, 272)])
    d.text(300, 240, "VerifyRequest", size=12, colour="#555", anchor="end")
    d.text(600, 240, "DraftRequest, BranchRequest", size=12, colour="#555", anchor="start")
    for x, fill, stroke, worker in (
        (100, SOFT_BLUE, BLUE, "Verifier\ntarget model, acceptance rule,\nfeatures for H-RAD"),
        (510, SOFT_GREEN, GREEN, "Drafter\ndraft model, tree of branches,\nacceptance, n-grams"),
    ):
        d.box(x, 273, 290, 140, fill="white", stroke=stroke, dashed=True)
        d.text(x + 12, 293, "Executor", anchor="start", bold=True)
        d.text(x + 278, 293, "process, thread, inline, virtual", size=12, anchor="end")
        d.box(x + 20, 307, 250, 90, worker, fill=fill, stroke=stroke)
    d.save("architecture.svg")


def draw_all() -> None:
    draw_rounds()
    draw_tree()
    draw_architecture()


if __name__ == "__main__":
    draw_all()
