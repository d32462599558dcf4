"""``specbranch pairs`` and ``specbranch pull``: the pairs that have a name."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from specbranch.models.pairs import PAIRS, find_pair, pull


def run_pairs(_: argparse.Namespace) -> int:
    """List the named pairs."""
    table = Table()
    for heading in ("pair", "target", "drafts", "licence", "here"):
        table.add_column(heading)
    for pair in PAIRS.values():
        where = pair.here()
        table.add_row(
            pair.name,
            pair.parameters,
            ", ".join(pair.drafts) or "none",
            pair.licence,
            "yes" if where else f"no: specbranch pull {pair.name} ({pair.download})",
        )
    console = Console()
    console.print(table)
    for pair in PAIRS.values():
        console.print(f"{pair.name}: {pair.title} ({pair.languages})", soft_wrap=True)
    return 0


def run_pull(options: argparse.Namespace) -> int:
    """Get a pair's target."""
    pair = find_pair(options.pair)
    before = pair.here()
    where = before or pull(pair)
    print(f"{pair.name} is {'already here' if before else 'here now'}: {where}")
    return 0
