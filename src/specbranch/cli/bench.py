"""``specbranch bench``: speed, measured side by side in one run."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table

from specbranch.bench.interleave import Results, interleave
from specbranch.bench.speed import Overlap, Speed, overlap, speeds
from specbranch.cli.checks import check_counts, check_writable
from specbranch.cli.pair import load_both, sampling_params
from specbranch.errors import InputError
from specbranch.prompts import read_prompts


def _table(rows: list[Speed], title: str) -> Table:
    table = Table(title=title)
    headings = ("method", "tokens/s", "× plain", "× plain on target's share", "M", "RB", "idle")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            row.label,
            f"{row.tokens_per_second.middle:.1f}",
            str(row.over_plain),
            str(row.over_share),
            f"{row.accepted:.2f}",
            f"{row.rollback:.2f}",
            f"{100 * row.idle:.0f} %",
        )
    return table


def _describe(found: Overlap) -> str:
    return "\n".join(
        (
            f"SpecBranch's lanes: round ÷ longer lane {found.round_time:.3f}; "
            f"target idle {100 * found.idle:.1f} %, after a hit {100 * found.steady_idle:.1f} %; "
            f"c {found.c:.1f}",
            f"gain of overlap over the models in turn on all cores: {found.gain}; "
            f"with the reading of the prompt: {found.gain_with_prompt}",
            f"the target's forward beside a working draft takes {found.slow_down:.2f} of its time "
            "alone on the same cores",
        )
    )


def _report(rows: list[Speed], lanes: Overlap | None, results: Results) -> dict[str, object]:
    return {
        "speeds": [asdict(row) for row in rows],
        "overlap": asdict(lanes) if lanes else None,
        "texts": {"compared": results.compared, "identical": results.identical},
    }


def run_bench(options: argparse.Namespace) -> int:
    """Measure; 1 if any text differs from plain decoding's."""
    params = sampling_params(options)
    if not params.greedy and params.acceptance == "rejection":
        raise InputError("texts can be compared with greedy decoding or --acceptance coupled only")
    if not params.greedy and params.seed is None:
        params = replace(params, seed=0)
    check_counts(options, "repeats", "limit", "prompt_tokens")
    if options.output:
        check_writable(options.output)
    texts = [text for file in options.files for text in read_prompts(file, options.limit)]
    pair = load_both(options)
    llm = pair.parallel
    # Prompts as tokens, the long ones cut.
    encoded = llm.tokenizer(texts, truncation=True, max_length=options.prompt_tokens)
    prompts = encoded["input_ids"]
    contenders = pair.field(llm.options)
    results = interleave(contenders, prompts, params, options.repeats)
    pair.close()
    rows, lanes = speeds(contenders, results), overlap(results)
    done = len(results.metrics[rows[0].label])
    title = (
        f"{llm.target.name} + {llm.draft.name if llm.draft else 'none'}, {len(prompts)} prompts, "
        f"median (range) of {done} repeats"
    )
    console = Console()
    console.print(_table(rows, title))
    if lanes:
        console.print(_describe(lanes))
        console.print(
            "equal cores: plain decoding and SpS have all of them for each model in turn "
            f"({llm.placement.alone}); SpecBranch and PEARL split them (target "
            f"{llm.placement.target}, draft {llm.placement.draft}). The paper's setting compares "
            "with plain decoding on the target's share, without the draft's hardware."
        )
    console.print(f"plain decoding's tokens: {results.identical} of {results.compared} texts")
    if options.output:
        options.output.write_text(json.dumps(_report(rows, lanes, results), indent=2) + "\n")
    return int(results.identical < results.compared)
