"""``specbranch draft``: make a draft for a target, and see what it gains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from specbranch.cli.checks import check_counts
from specbranch.cli.pair import load_both, load_llm
from specbranch.cli.simulate import encode, predictions_table
from specbranch.errors import InputError
from specbranch.executors.latency_profile import Profile
from specbranch.models.loader import ModelSpec
from specbranch.prompts import read_prompts
from specbranch.sampling_params import SamplingParams
from specbranch.simulate.measure import measure
from specbranch.simulate.predict import PROMPTS, Prediction, predict
from specbranch.simulate.profiles import find_profile
from specbranch.training.draft.make import DraftRecipe, make_draft
from specbranch.training.draft.report import (
    BreakEven,
    a_device_each,
    accepted_length,
    agreements,
    alone,
    together,
)
from specbranch.training.pair.card import calibration_table


def run_draft(options: argparse.Namespace) -> int:
    """Run the sub-command."""
    return _make(options) if options.step == "make" else _report(options)


def _make(options: argparse.Namespace) -> int:
    check_counts(options, "limit", "max_tokens")
    if options.vocabulary < 0:
        raise InputError(f"--vocabulary must be 0 (all) or more, not {options.vocabulary}")
    ways = [options.size, options.from_layers, options.init]
    if sum(way is not None for way in ways) > 1:
        raise InputError("give one of --size, --from-layers and --init")
    if not options.minutes > 0:
        raise InputError(f"--minutes must be more than 0, not {options.minutes:g}")
    texts = [text for file in options.prompts for text in read_prompts(file, options.limit)]
    recipe = DraftRecipe(
        options.target,
        options.out,
        _parameters(options.size),
        _layers(options.from_layers),
        options.init,
        options.minutes,
        options.device,
        options.max_tokens,
        options.vocabulary,
    )
    try:
        agreement = make_draft(recipe, texts)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one was", file=sys.stderr)
        return 130
    print(f"wrote {recipe.out}; agreement with answers that it had not seen: {agreement:.3f}")
    return 0


def _parameters(size: str | None) -> int | None:
    """A size such as ``15M`` as a number."""
    if size is None:
        return None
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(size[-1:].upper(), 0.0)
    try:
        count = int(float(size[:-1]) * factor) if factor else int(size)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"--size is a number of parameters, such as 15M, not {size}")
    return count


def _layers(given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    try:
        return tuple(int(each) for each in given.split(","))
    except ValueError:
        raise InputError(f"--from-layers is a list such as 0,1,29, not {given}") from None


def _report(options: argparse.Namespace) -> int:
    check_counts(options, "limit", "prompt_tokens", "max_tokens", "repeats")
    files = options.prompts or [PROMPTS]
    texts = {file.stem: read_prompts(file, options.limit) for file in files}
    others = {name: find_profile(name) for name in options.profiles}
    options.profile = None
    pair = load_both(options)
    assert pair.parallel.draft is not None
    prompts = {
        domain: encode(pair.parallel, several, options.prompt_tokens)
        for domain, several in texts.items()
    }
    everything = [ids for several in prompts.values() for ids in several]
    spec = ModelSpec(
        pair.parallel.draft.name,
        options.dtype,
        options.draft_device or options.device,
        drafts=True,
    )
    found = agreements(pair, spec, prompts, options.max_tokens)
    profile = measure(pair, everything, options.max_tokens, options.repeats)
    pair.close()

    overall = together(found)
    target, draft = alone(profile)
    even = BreakEven.of(overall.rate, target, draft)
    console = Console()
    table = Table(title=f"top-1 agreement with {pair.parallel.target.name}'s greedy text")
    for heading in ("prompts", "agreement", "M, γ = 4", "M, γ = 8"):
        table.add_column(heading, justify="left" if heading == "prompts" else "right")
    for domain, each in [*found.items(), ("all", overall)]:
        lengths = [f"{accepted_length(each.matches, gamma):.2f}" for gamma in (4, 8)]
        table.add_row(domain, f"{each.rate:.3f}", *lengths)
    console.print(table)
    console.print("acceptance by confidence (share of tokens)")
    console.print(Markdown("\n".join(calibration_table({"draft": overall}))))
    console.print(
        f"a draft step takes {1e3 * draft.seconds(1):.2f} ms here, a verification of 1 token "
        f"{1e3 * target.seconds(1):.2f} ms, of 8 {1e3 * target.seconds(8):.2f} ms "
        f"({target.seconds(8) / draft.seconds(1):.1f} steps); best γ in sequence: {even.gamma}",
        highlight=False,
    )
    params = SamplingParams(max_tokens=options.max_tokens)
    rows: dict[str, list[Prediction]] = {}
    profiles = {"equal hardware": profile, "a device each": a_device_each(profile)} | others
    for name, each_profile in profiles.items():
        rows[name] = _predicted(options, each_profile, everything, params)
        unit = each_profile.devices.unit
        console.print(predictions_table(rows[name], f"predicted, {name}", unit))
    one, two = (_best(rows[name]) for name in ("equal hardware", "a device each"))
    console.print(
        f"with this draft: {two:.2f} × on two devices, {one:.2f} × on one; without it, by prompt "
        f"lookup: {rows['equal hardware'][-1].over_plain:.2f} ×. Not worth it below an agreement "
        f"of {even.alpha:.2f}, and it has {overall.rate:.2f}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    if overall.rate == 1.0:
        console.print("an agreement of 1.00: is the draft the target itself?", style="bold red")
    return 0


def _predicted(
    options: argparse.Namespace,
    profile: Profile,
    prompts: Sequence[list[int]],
    params: SamplingParams,
) -> list[Prediction]:
    changed = {"executor": "virtual", "target_cores": None, "draft_cores": None}
    with load_llm(argparse.Namespace(**vars(options) | changed), profile) as llm:
        return predict(llm, profile, prompts, params, lookup=True)


def _best(rows: Sequence[Prediction]) -> float:
    """The best of the methods that take the draft."""
    return max(row.over_plain for row in rows[1:-1])
