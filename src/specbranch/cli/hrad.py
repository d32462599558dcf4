"""``specbranch hrad``: collect records of a pair, and train its predictor on them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import fields, replace

from rich.console import Console
from rich.table import Table

from specbranch.bench.plot_file import check_file
from specbranch.cli.checks import check_counts, check_writable
from specbranch.cli.pair import load_llm, sampling_params
from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.policy.signal import Keep
from specbranch.prompts import read_prompts
from specbranch.training.hrad.baselines import GOES_BY, Comparison, compare
from specbranch.training.hrad.collect import Prompt, collect
from specbranch.training.hrad.plot import draw
from specbranch.training.hrad.records import Collection, RecordingSetup, Records, manifest
from specbranch.training.hrad.train import Recipe, fit, split


def run_hrad(options: argparse.Namespace) -> int:
    """Run the sub-command."""
    return _collect(options) if options.step == "collect" else _train(options)


def _collect(options: argparse.Namespace) -> int:
    """Collect, and say how many records of each class there are."""
    params = sampling_params(options)
    if not params.greedy and params.seed is None:
        params = replace(params, seed=0)  # so that an interrupted run goes on as it began
    check_counts(options, "limit", "prompt_tokens", "gamma", "layers")
    if options.draft in ("none", "auto"):
        raise InputError("records are of a pair: give a draft model")
    texts = [(file.name, read_prompts(file, options.limit)) for file in options.prompts]
    with load_llm(argparse.Namespace(**vars(options) | {"method": "speculative"})) as llm:
        assert llm.draft is not None
        setting = RecordingSetup.of(llm.target, llm.draft, options.gamma, options.layers)
        collection = Collection(options.out, manifest(setting, params))
        prompts = [
            Prompt(ids, source)
            for source, found in texts
            for ids in _encode(llm, found, options.prompt_tokens)
        ]
        try:
            collect(llm, prompts, params, collection)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on where this one was", file=sys.stderr)
            return 130
    Console().print(_counts(*collection.load()))
    return 0


def _encode(llm: LLM, texts: list[str], most: int) -> list[list[int]]:
    found: list[list[int]] = llm.tokenizer(texts, truncation=True, max_length=most)["input_ids"]
    return found


def _counts(records: Records, sources: list[str]) -> Table:
    """Records of each class, by the file that the prompts are from."""
    labels, prompts = records.labels.tolist(), records.prompts.tolist()
    found = Counter((sources[p], label) for p, label in zip(prompts, labels, strict=True))
    table = Table(title=f"{len(records)} records of {len(sources)} prompts")
    table.add_column("prompts of")
    for keep in Keep:
        table.add_column(f"{keep.value}: {keep.name.lower()}", justify="right")
    for source in sorted(set(sources)):
        table.add_row(source, *(str(found[source, keep]) for keep in Keep))
    totals = [sum(found[source, keep] for source in set(sources)) for keep in Keep]
    table.add_section()
    table.add_row("all", *(f"{n} ({100 * n / len(records):.0f} %)" for n in totals))
    return table


def _train(options: argparse.Namespace) -> int:
    """Train, compare with the baselines, and write the predictor with what came of it."""
    check_counts(options, "epochs", "batch_size")
    if not 0 < options.held_out < 1:
        raise InputError(f"--held-out must be between 0 and 1, not {options.held_out:g}")
    check_writable(options.out)
    if options.plot:
        check_writable(options.plot)
        check_file(options.plot)
    collection = Collection(options.records)
    records, sources = collection.load()
    parts = split(records, options.held_out, options.seed)
    recipe = Recipe(options.epochs, options.batch_size, options.seed)
    model = fit(collection.setting, parts, recipe, "H-RAD")
    found = compare(model, parts, recipe)
    model.trained |= {
        "rows": {f.name: len(getattr(parts, f.name)) for f in fields(parts)},
        "held_out": found.figures(),
    }
    model.save(options.out)
    console = Console()
    console.print(_counts(records, sources))
    console.print(_classes(found, len(parts.held_out)))
    console.print(_confusions(found))
    console.print(_tokens(found, int(parts.held_out.tested.sum())))
    console.print(f"wrote {options.out}, of epoch {model.trained['epochs']}")
    if options.plot:
        draw(model, parts.held_out, options.plot)
        console.print(f"wrote {options.plot}")
    return 0


def _classes(found: Comparison, rows: int) -> Table:
    table = Table(
        title=f"{rows} held-out rounds: precision/recall/F1 of each class in %",
        caption=f"implicit: tokens before the first confidence below {found.epsilon:g}, "
        "the ε that is best for the training rows",
    )
    table.add_column("predictor")
    table.add_column("goes by")
    for heading in (*(str(keep.value) for keep in Keep), "macro-F1"):
        table.add_column(heading, justify="right")
    for name, scores in found.classes.items():
        per_class = zip(scores.precision, scores.recall, scores.f1, strict=True)
        cells = ["/".join(f"{100 * value:.0f}" for value in figures) for figures in per_class]
        table.add_row(name, GOES_BY[name], *cells, f"{scores.macro_f1:.3f}")
    return table


def _confusions(found: Comparison) -> Table:
    table = Table(title="confusion: rounds of a true class, predicted as 0 / 1 / 2")
    table.add_column("predictor")
    for keep in Keep:
        table.add_column(f"true {keep.value}", justify="right")
    for name, scores in found.classes.items():
        rows = scores.confusion.tolist()
        table.add_row(name, *(" / ".join(map(str, row)) for row in rows))
    return table


def _tokens(found: Comparison, tokens: int) -> Table:
    table = Table(title=f"acceptance of {tokens} held-out tokens")
    table.add_column("estimate")
    for heading in ("Brier score", "log-loss"):
        table.add_column(heading, justify="right")
    for name, fitted in found.tokens.items():
        table.add_row(name, f"{fitted.brier:.4f}", f"{fitted.log_loss:.4f}")
    return table
