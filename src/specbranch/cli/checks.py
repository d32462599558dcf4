"""Options that are wrong are refused before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from specbranch.errors import InputError


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Refuse counts below 1; None is no count.

    Raises:
        InputError: naming the option.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")


def check_writable(file: Path) -> None:
    """Refuse, before any work, a file that could not be written.

    Raises:
        InputError: it is a folder, or there is no such folder.
    """
    if file.is_dir():
        raise InputError(f"cannot write {file}: it is a folder")
    if not file.absolute().parent.is_dir():
        raise InputError(f"cannot write {file}: no folder {file.absolute().parent}")
