"""What the documents name is there: links, anchors, files, modules, options, figures, pages."""

import argparse
import importlib.util
import re
from pathlib import Path

import pytest

from specbranch.cli.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ROOT / "src/specbranch/zoo/pair/README.md",
    ROOT / "benchmarks/peers.md",
    *PAGES,
]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# A path below one of our folders, in backquotes or as an argument of a command.
NAMED_PATH = re.compile(
    r"(?<![\w/.-])((?:src|docs|tests|examples|benchmarks|\.github|\.ci)/[\w./-]*\w/?)"
)
MODULE = re.compile(r"(?:python -m |::: )(specbranch[\w.]*)|`(specbranch(?:\.\w+)+)")

every_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT))
)


def prose_of(document):
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors_of(document):
    """Names of its headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {re.sub(r"\s", "-", heading.strip()) for heading in words}


def links_of(document):
    return re.findall(r"\]\(([^)\s]+)[^)]*\)", prose_of(document))


@every_document
def test_links_lead_somewhere(document):
    for link in links_of(document):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors_of(file), f"{link}: {file.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda file: file.name)
def test_links_of_a_page_stay_in_the_site(page):
    for link in links_of(page):
        if not re.match(r"https?://|#", link):
            file = (page.parent / link.partition("#")[0]).resolve()
            assert file.is_relative_to(ROOT / "docs"), link


@every_document
def test_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    named = {path.rstrip(".") for path in NAMED_PATH.findall(text)}
    assert not [path for path in named if not (ROOT / path).exists()]


@every_document
def test_named_modules_exist(document):
    for whole in MODULE.findall(document.read_text(encoding="utf-8")):
        name = whole[0] or whole[1]
        assert is_there(name), f"there is no {name}"


def is_there(name):
    """Whether it is a module, or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        if found is not None:
            held = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                if not hasattr(held, part):
                    return False
                held = getattr(held, part)
            return True
    return False


def commands_of(parser):
    """Options of each command, by its name."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                options = {o for a in command._actions for o in a.option_strings}
                nested = commands_of(command)
                found[name] = options.union(*nested.values())
    return found


@every_document
def test_commands_have_the_options_that_are_named(document):
    commands = commands_of(build_parser())
    blocks = "\n".join(FENCE.findall(document.read_text(encoding="utf-8")))
    for line in blocks.replace("\\\n", " ").splitlines():
        used = re.search(r"(?:^|\| |\.venv/bin/)specbranch ([\w-]+)([^#]*)", line)
        if used:
            command, rest = used.groups()
            assert command in commands, line
            unknown = set(re.findall(r"(?<=\s)--[\w-]+", rest)) - commands[command]
            assert not unknown, line


def test_the_readme_is_short_and_opens_with_what_it_does():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    head = "\n".join(lines[:40])
    assert head.index("SpecBranch makes") < head.index("![") < head.index("make demo")
    assert "make test" in head
    assert sum(line.startswith("![") for line in lines) <= 3


def test_every_page_is_in_the_site():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"- (?:\w+: )?([\w/-]+\.md)$", config, re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES}


def test_diagrams_are_those_that_their_script_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs/figures/draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    draw.HERE = tmp_path
    draw.draw_all()
    drawn = list(tmp_path.glob("*.svg"))
    assert drawn
    for file in drawn:
        assert file.read_text() == (ROOT / "docs/figures" / file.name).read_text()
