"""Prompts from files: plain text, or JSON lines in the shapes that public suites use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specbranch.errors import InputError


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file.

    Raises:
        InputError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        yield _row(file, number, line)


def _row(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {number}: no JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{file}, line {number}: not a JSON object")
    return row


def math_prompt(question: str) -> str:
    """A GSM8K question in the form the bundled pair is trained on."""
    return f"Question: {question.strip()}\nAnswer:"


def row_turns(row: dict[str, Any]) -> list[str] | None:
    """What the user says in a row: HumanEval's `prompt`, GSM8K's `question`, Spec-Bench's turns."""
    turns: object = None
    if "prompt" in row:
        turns = [row["prompt"]]
    elif isinstance(row.get("question"), str):
        turns = [math_prompt(row["question"])]
    elif "turns" in row:
        turns = row["turns"]
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return turns
    return None


def read_prompts(file: Path, limit: int | None = None) -> list[str]:
    """The prompts of a file: one a row of ``*.jsonl``, else the text without its last line's end.

    Args:
        limit: only the first so many.

    Raises:
        InputError: the file cannot be read, is empty, or has a row without a prompt.
    """
    if file.suffix != ".jsonl":
        text = _read(file).removesuffix("\n")
        if not text:
            raise InputError(f"{file} is empty: give some text to continue")
        return [text]
    prompts = []
    for row in read_rows(file, limit):
        if isinstance(row, InputError):
            raise row
        prompts.append(row)
    return prompts


def read_rows(file: Path, limit: int | None = None) -> list[str | InputError]:
    """The prompts of a ``*.jsonl`` file; in place of a bad row what is wrong with it.

    Args:
        limit: only the first so many.

    Raises:
        InputError: the file cannot be read, or has no rows.
    """
    found: list[str | InputError] = []
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if limit is not None and len(found) == limit:
            break
        if not line.strip():
            continue
        try:
            turns = row_turns(_row(file, number, line))
            if turns is None:
                raise InputError(
                    f"{file}, row {len(found) + 1}: no prompt; a row needs 'prompt', "
                    "'question' or 'turns' with text"
                )
            found.append(turns[0])
        except InputError as error:
            found.append(error)
    if not found:
        raise InputError(f"{file} has no rows")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text") from None
