"""Refuses a plot that could not be drawn, before any work is done."""

from __future__ import annotations

from pathlib import Path

from specbranch.errors import InputError

SUFFIXES = (".svg", ".png")


def check_file(file: Path) -> None:
    """Check that a plot can be drawn.

    Raises:
        InputError: the file's type is unknown, or matplotlib is not installed.
    """
    if file.suffix not in SUFFIXES:
        raise InputError(f"a plot is .svg or .png, not '{file.name}'")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "drawing a plot needs matplotlib: pip install 'specbranch[plots]'"
        ) from None
