"""Questions to measure on: public suites by name or by path, and ten of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbranch.errors import InputError
from specbranch.prompts import read_jsonl, row_turns

Row = dict[str, Any]
TEN = "ten"
_TEN = Path(__file__).with_name("ten.jsonl")
PAPER_SUITES = ("humaneval", "gsm8k", "cnndm", "spec_bench")


@dataclass(frozen=True)
class Question:
    """One conversation with the user's side given.

    Attributes:
        suite: where it is from.
        id: within the suite.
        category: as the suite says; else the suite's name.
        turns: what the user says, turn by turn.
    """

    suite: str
    id: int | str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Hub:
    """Where `datasets` finds a public suite.

    Attributes:
        path, config, split, data_files: as `datasets.load_dataset` takes them.
        row: makes a row in one of the shapes that `row_turns` reads.
    """

    path: str
    config: str | None = None
    split: str = "test"
    data_files: str | None = None
    row: Callable[[Row], Row] = dict


HUBS = {
    "humaneval": Hub("openai/openai_humaneval"),
    "gsm8k": Hub("openai/gsm8k", "main"),
    "cnndm": Hub(
        "abisee/cnn_dailymail",
        "3.0.0",
        row=lambda row: {
            "question_id": row["id"],
            "category": "summarization",
            "turns": [f"Summarize: {row['article']}"],
        },
    ),
    "spec_bench": Hub(
        "json",
        split="train",
        data_files="https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/"
        "question.jsonl",
    ),
}


def load_suite(name: str, limit: int | None = None, data: Path | None = None) -> list[Question]:
    """The questions of a suite.

    Args:
        name: a .jsonl file; `ten`, which ships with this package; or a public suite (`humaneval`,
            `gsm8k`, `cnndm`, `spec_bench`), which the `datasets` library fetches.
        limit: so many of them, spread evenly over the suite.
        data: folder that has public suites as files, such as ``humaneval.jsonl``.

    Raises:
        InputError: no such suite, or one that cannot be read or fetched.
    """
    file = _TEN if name == TEN else Path(name)
    if file.suffix == ".jsonl":
        return _questions(file.stem, read_jsonl(file), str(file), limit)
    if name not in HUBS:
        raise InputError(
            f"no suite '{name}': give a .jsonl file or one of {', '.join([TEN, *HUBS])}"
        )
    if data is not None:
        stored = data / f"{name}.jsonl"
        return _questions(name, read_jsonl(stored), str(stored), limit)
    return _questions(name, _fetch(name, HUBS[name]), name, limit)


def _fetch(name: str, hub: Hub) -> Iterable[Row]:
    elsewhere = f"give a file, or with --data the folder that has {name}.jsonl"
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"the suite '{name}' comes through the datasets library: "
            f"pip install 'specbranch[suites]', {elsewhere}"
        ) from None
    try:
        rows = load_dataset(hub.path, hub.config, split=hub.split, data_files=hub.data_files)
    except Exception as error:  # whatever of a network, a cache and a hub may fail
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot fetch the suite '{name}' ({reason}): {elsewhere}") from None
    return map(hub.row, rows)


def _questions(suite: str, rows: Iterable[Row], source: str, limit: int | None) -> list[Question]:
    questions = []
    for number, row in enumerate(rows, start=1):
        turns = row_turns(row)
        if turns is None:
            raise InputError(
                f"{source}, row {number}: no prompt; a row needs 'prompt', 'question' or 'turns'"
            )
        identity: int | str = row.get("question_id") or row.get("task_id") or number - 1
        category = str(row.get("category", suite))
        questions.append(Question(suite, identity, category, tuple(turns)))
    if not questions:
        raise InputError(f"{source} has no rows")
    if limit is None or limit >= len(questions):
        return questions
    return [questions[i * len(questions) // limit] for i in range(limit)]
