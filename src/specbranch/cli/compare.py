"""``specbranch compare``: one prompt by every method, on one time axis."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from specbranch.bench.contenders import PLAIN
from specbranch.bench.run import WARM_UP
from specbranch.cli.pair import load_both, sampling_params
from specbranch.engine import timeline
from specbranch.errors import InputError


def run_compare(options: argparse.Namespace) -> int:
    """Decode the prompt by each method, print a table, and draw the timelines."""
    params = sampling_params(options)
    if not params.greedy and params.seed is None:
        raise InputError("sampling by several methods needs --seed, or they have nothing in common")
    if options.timeline:
        timeline.check_file(options.timeline)
    pair = load_both(options)
    outputs, labels = {}, {}
    for contender in tqdm(pair.lineup(pair.parallel.config), desc="methods", file=sys.stderr):
        contender.generate(options.prompt, WARM_UP)
        outputs[contender.name] = contender.generate(options.prompt, params)
        labels[contender.name] = contender.label
    pair.close()
    plain = outputs[PLAIN].metrics.tokens_per_second
    table = Table()
    for heading in ("method", "tokens", "tokens/s", "speed-up", "M", "RB", "target idle"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, output in outputs.items():
        metrics = output.metrics
        table.add_row(
            labels[name],
            str(metrics.committed),
            f"{metrics.tokens_per_second:.1f}",
            f"{metrics.tokens_per_second / plain:.2f}",
            f"{metrics.mean_accepted_length:.2f}",
            f"{metrics.rollback_rate:.2f}",
            f"{100 * timeline.target_idle([output.rounds]):.0f} %",
        )
    console = Console()
    console.print(table)
    console.print(Text("one run of one prompt: `specbranch bench` measures speed", style="dim"))
    if options.timeline:
        shown = {labels[name]: output.rounds for name, output in outputs.items()}
        timeline.save(shown, options.timeline)
        console.print(f"wrote {options.timeline}")
    return 0
