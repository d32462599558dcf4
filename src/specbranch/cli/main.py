"""Parsing of the command line, and one line for whatever goes wrong."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from specbranch import __version__
from specbranch.cli.arguments import (
    TIMELINE,
    add_bench,
    add_drafting,
    add_hrad,
    add_pair,
    add_profile,
    add_sampling,
    add_simulate,
)
from specbranch.errors import SpecBranchError
from specbranch.openmp import limit_spinning


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="specbranch",
        description="Lossless speculative decoding with rollback-aware branch parallelism.",
    )
    parser.add_argument("--version", action="version", version=f"specbranch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="continue a prompt, streaming the text")
    source = generate.add_mutually_exclusive_group()
    source.add_argument("prompt", nargs="?", help="the text to continue; '-' reads standard input")
    source.add_argument(
        "--file", type=Path, help="read the prompt from a file; a .jsonl has one a row"
    )
    generate.add_argument("--limit", type=int, help="only the first N prompts of the file")
    generate.add_argument("--json", action="store_true", help="one JSON object a prompt, no text")
    generate.add_argument("--timeline", type=Path, help=TIMELINE)
    generate.add_argument("--no-color", action="store_true", help="plain text on any terminal")
    generate.add_argument(
        "--compare",
        action="store_true",
        help="run plain decoding too, check that the tokens are the same, print both in a table",
    )
    generate.add_argument(
        "--method",
        help="specbranch (default), pearl, speculative, adaedl; without a draft: lookup, "
        "lookahead, autoregressive",
    )
    add_drafting(generate)
    add_pair(generate)
    add_sampling(generate)

    compare = commands.add_parser("compare", help="decode one prompt by every method")
    compare.add_argument("prompt", help="the text to continue")
    compare.add_argument("--timeline", type=Path, help=TIMELINE)
    add_drafting(compare)
    compare.set_defaults(speculate="always")  # to see what the methods do
    add_pair(compare)
    add_sampling(compare)

    add_bench(commands.add_parser("bench", help="measure every method's speed side by side"))

    add_profile(
        commands.add_parser("profile", help="measure what the pair's forwards take on this machine")
    )
    add_simulate(
        commands.add_parser("simulate", help="what each method would gain on other hardware")
    )

    add_hrad(commands.add_parser("hrad", help="train the predictor of how much to draft"))

    info = commands.add_parser("info", help="show the pair, its vocabularies, devices, versions")
    add_pair(info)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: bad input, 1: a check failed)."""
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")  # a character that it lacks is no end of the text
    if getattr(options, "draft", None) == "auto" and options.target == "target":
        options.draft = "draft"  # the bundled target's own
    limit_spinning()
    try:
        # Imported here: torch takes seconds to load, and --help should not.
        if options.command == "generate":
            from specbranch.cli.generate import run_generate

            return run_generate(options)
        if options.command == "compare":
            from specbranch.cli.compare import run_compare

            return run_compare(options)
        if options.command == "bench":
            from specbranch.cli.bench import run_bench

            return run_bench(options)
        if options.command == "profile":
            from specbranch.cli.profile import run_profile

            return run_profile(options)
        if options.command == "simulate":
            from specbranch.cli.simulate import run_simulate

            return run_simulate(options)
        if options.command == "hrad":
            from specbranch.cli.hrad import run_hrad

            return run_hrad(options)
        from specbranch.cli.info import run_info

        return run_info(options)
    except SpecBranchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader went away (`| head`): nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (MemoryError, OSError) as error:
        print(f"error: {error or 'out of memory'}", file=sys.stderr)
        return 2
