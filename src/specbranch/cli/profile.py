"""``specbranch profile``: what the pair's forwards take on this machine."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from specbranch.cli.checks import check_counts, check_writable
from specbranch.cli.pair import load_both
from specbranch.cli.simulate import encode, read_texts
from specbranch.executors.latency_profile import ModelLatency, Profile
from specbranch.simulate.measure import measure

SIZES = (1, 4, 8, 16)  # tokens, or branches, to show


def run_profile(options: argparse.Namespace) -> int:
    """Measure, write the profile, and print what is in it."""
    check_counts(options, "repeats", "limit", "prompt_tokens", "max_tokens")
    check_writable(options.out)
    texts = read_texts(options)
    pair = load_both(options)
    prompts = encode(pair.parallel, texts, options.prompt_tokens)
    profile = measure(pair, prompts, options.max_tokens, options.repeats)
    pair.close()
    profile.save(options.out)
    console = Console()
    console.print(_table(profile))
    console.print(f"wrote {options.out}")
    return 0


def _table(profile: Profile) -> Table:
    table = Table(title=f"{profile.source}, on {profile.machine['cpu']}")
    table.add_column("ms of a forward of")
    for n in SIZES:
        table.add_column(str(n), justify="right")
    table.add_column("a call more", justify="right")
    table.add_column("c", justify="right")
    target, draft = profile.target, profile.draft
    for label, costs, c in (
        ("target, beside the draft", target, target.seconds(1) / draft.seconds(1)),
        ("target, alone", target.alone, None),
        ("draft, beside the target", draft, None),
        ("draft, alone", draft.alone, None),
    ):
        if costs is not None:
            table.add_row(label, *_cells(costs), f"{c:.1f}" if c else "")
    return table


def _cells(costs: ModelLatency) -> list[str]:
    return [f"{1e3 * seconds:.2f}" for seconds in [*map(costs.seconds, SIZES), costs.call]]
