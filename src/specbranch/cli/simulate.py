"""``specbranch simulate``: what each method would gain on hardware that is not here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from specbranch.bench.plot_file import check_file
from specbranch.cli.checks import check_counts, check_writable
from specbranch.cli.pair import load_llm
from specbranch.config import SpeculativeConfig
from specbranch.engine.inputs import chat_prompt
from specbranch.errors import InputError
from specbranch.executors.latency_profile import Profile
from specbranch.llm import LLM
from specbranch.prompts import read_prompts
from specbranch.sampling_params import SamplingParams
from specbranch.simulate import heatmap
from specbranch.simulate.predict import PROMPTS, Gamma, Prediction, Sweep, predict, sweep
from specbranch.simulate.profiles import builtin, find_profile
from specbranch.simulate.rounds import compare_rounds, read_recordings

DRAFT_MS = 2.0
BRANCH_COST = 0.05
SWEPT_GAMMAS: list[Gamma] = [2, 4, 8, 12, "auto"]
# Of a round over recordings, if nothing is asked: the bundled pair's, decoding as in the paper (two
# prompts of each of four suites, 80 tokens): 53 hits of 67 accepted chains, 6.3 branches a round.
HIT = 0.79
BRANCHES = 6


def read_texts(options: argparse.Namespace) -> list[str]:
    """The prompts of the options' files, or the built-in ones."""
    files = options.files or [PROMPTS]
    return [text for file in files for text in read_prompts(file, options.limit)]


def encode(llm: LLM, texts: list[str], most: int) -> list[list[int]]:
    """Prompts as tokens, the long ones cut; said to a model that can be talked to."""
    if llm.tokenizer.chat_template:
        messages = [[{"role": "user", "content": text}] for text in texts]
        return [chat_prompt(said, llm.tokenizer).token_ids[-most:] for said in messages]
    encoded: list[list[int]] = llm.tokenizer(texts, truncation=True, max_length=most)["input_ids"]
    return encoded


def run_simulate(options: argparse.Namespace) -> int:
    """Simulate what the options ask for: the methods, a sweep, or recorded acceptance."""
    if options.list:
        _print_profiles(Console())
        return 0
    _check(options)
    if options.acceptance:
        profile = _profile(options)
        rows = _recorded(options, profile)
        return _report(options, profile, rows, f"{options.acceptance.name}, {options.column}")
    if options.draft in ("none", "auto"):
        raise InputError("a comparison of methods needs a draft model")
    if options.sweep_c:
        return _sweep(options)
    profile, texts = _profile(options), read_texts(options)
    with load_llm(options, profile) as llm:
        prompts = encode(llm, texts, options.prompt_tokens)
        rows = predict(llm, profile, prompts, SamplingParams(max_tokens=options.max_tokens))
        title = f"{llm.target.name} + {options.draft}, {len(prompts)} prompts"
    return _report(options, profile, rows, title)


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be simulated, before anything is loaded."""
    check_counts(options, "limit", "prompt_tokens", "max_tokens")
    for file in (options.output, options.plot):
        if file:
            check_writable(file)
    if options.plot:
        if not options.sweep_c:
            raise InputError("--plot draws a sweep: give --sweep-c, too")
        check_file(options.plot)
    by_hand = ("draft_ms", "branch_cost") if options.sweep_c else ("c", "draft_ms", "branch_cost")
    if options.sweep_c and (options.profile or options.c is not None or options.acceptance):
        raise InputError("--sweep-c takes the place of --profile, --c and --acceptance")
    if options.profile and any(getattr(options, name) is not None for name in by_hand):
        raise InputError("a profile says how fast the models are: leave out --c, --draft-ms, …")
    for name in ("c", "draft_ms"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be above 0 and finite, not {value}")
    for c in options.sweep_c or []:
        if not 0 < c < float("inf"):
            raise InputError(f"--sweep-c must be above 0 and finite, not {c}")
    if options.branch_cost is not None and not 0 <= options.branch_cost < float("inf"):
        raise InputError(f"--branch-cost must be 0 or more, not {options.branch_cost}")
    for gamma in options.sweep_gamma or []:
        SpeculativeConfig(gamma=gamma)
    if options.hit is not None and not 0 <= options.hit <= 1:
        raise InputError(f"--hit must be between 0 and 1, not {options.hit}")


def _profile(options: argparse.Namespace) -> Profile:
    """The profile that the options name or describe.

    Raises:
        InputError: none is asked for, or there is no such profile.
    """
    if options.profile:
        return find_profile(options.profile)
    if options.c is None:
        raise InputError(
            "how fast are the models? Give --profile NAME or FILE (--list shows the built-in "
            "ones), or --c, the time of a target forward in draft steps"
        )
    return _by_hand(options, options.c)


def _by_hand(options: argparse.Namespace, c: float) -> Profile:
    step = DRAFT_MS if options.draft_ms is None else options.draft_ms
    cost = BRANCH_COST if options.branch_cost is None else options.branch_cost
    return Profile.of_ratio(c, cost, 1e-3 * step)


def _recorded(options: argparse.Namespace, profile: Profile) -> list[Prediction]:
    asked = {name: getattr(options, name) for name in ("gamma", "k_max")}
    given = {name: value for name, value in asked.items() if value is not None}
    drafting = SpeculativeConfig(**given)
    recordings = read_recordings(options.acceptance, options.column, options.limit)
    branches = BRANCHES if drafting.k_max == "auto" else drafting.k_max
    gamma = None if drafting.gamma == "auto" else drafting.gamma
    hit = HIT if options.hit is None else options.hit
    return compare_rounds(recordings, profile, hit, branches, gamma)


def _sweep(options: argparse.Namespace) -> int:
    texts = read_texts(options)
    found = sweep(
        lambda profile: load_llm(options, profile),
        [(c, _by_hand(options, c)) for c in options.sweep_c],
        options.sweep_gamma or SWEPT_GAMMAS,
        lambda llm: encode(llm, texts, options.prompt_tokens),
        SamplingParams(max_tokens=options.max_tokens),
    )
    title = f"SpecBranch ÷ plain decoding, {options.draft}, {len(texts)} prompts"
    console = Console()
    console.print(_swept(found, title))
    if options.plot:
        heatmap.draw(found, title, options.plot)
        console.print(f"wrote {options.plot}")
    if options.output:
        options.output.write_text(json.dumps(asdict(found), indent=2) + "\n")
    return 0


def _report(
    options: argparse.Namespace, profile: Profile, rows: Sequence[Prediction], title: str
) -> int:
    console = Console()
    console.print(predictions_table(rows, title, profile.devices.unit))
    unit = profile.devices.unit
    console.print(f"× each: speed ÷ plain decoding's, each divided by the {unit}s it takes")
    console.print(profile.source, highlight=False, soft_wrap=True)
    if options.output:
        figures: dict[str, Any] = {
            "source": profile.source,
            "machine": dict(profile.machine),
            "predictions": [asdict(row) for row in rows],
        }
        options.output.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def predictions_table(rows: Sequence[Prediction], title: str, unit: str) -> Table:
    """What each method comes to, a row each."""
    columns: dict[str, Callable[[Prediction], str]] = {
        "method": lambda row: row.label,
        "tokens/s": lambda row: f"{row.tokens_per_second:.1f}",
        "× plain": lambda row: f"{row.over_plain:.2f}",
        "M": lambda row: f"{row.accepted:.2f}",
        "RB": lambda row: f"{row.rollback:.2f}",
        "idle": lambda row: f"{100 * row.idle:.0f} %",
        f"{unit}s": lambda row: str(row.devices),
        "× each": lambda row: f"{row.per_device:.2f}",
    }
    table = Table(title=title)
    for heading in columns:
        first = heading == "method"
        table.add_column(heading, justify="left" if first else "right", no_wrap=not first)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def _swept(found: Sweep, title: str) -> Table:
    table = Table(title=title)
    table.add_column("c \\ γ", justify="right")
    for gamma in found.gammas:
        table.add_column(str(gamma), justify="right")
    for c, ratios in zip(found.cs, found.ratios, strict=True):
        table.add_row(f"{c:g}", *(f"{ratio:.2f}" for ratio in ratios))
    return table


def _print_profiles(console: Console) -> None:
    table = Table()
    for heading in ("profile", "target", "draft", "c", "plain", "sequential", "parallel"):
        table.add_column(heading, justify="left" if heading == "profile" else "right")
    for name, profile in builtin().items():
        target, draft = profile.target.seconds(1), profile.draft.seconds(1)
        found = profile.devices
        counts = (found.plain, found.sequential, found.parallel)
        table.add_row(
            name,
            f"{1e3 * target:.1f} ms",
            f"{1e3 * draft:.2f} ms",
            f"{target / draft:.1f}",
            *(f"{count} {found.unit}{'s' if count > 1 else ''}" for count in counts),
        )
    console.print(table)
    for name, profile in builtin().items():
        console.print(f"{name}: {profile.source}", highlight=False, soft_wrap=True)
