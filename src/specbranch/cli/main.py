"""Parsing of the command line, and one line for whatever goes wrong."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from specbranch import __version__
from specbranch.cli import arguments, training_arguments
from specbranch.errors import SpecBranchError
from specbranch.openmp import limit_spinning


class Command(NamedTuple):
    """A command of ``specbranch``.

    Attributes:
        help: what it does, in one line.
        add_arguments: adds its arguments to a parser.
        run: module and function that runs it and returns the exit code. It is imported late, since
            torch takes seconds to load, and --help should not wait for it.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: tuple[str, str]


COMMANDS = {
    "demo": Command(
        "ask a small real model, which is fetched if need be",
        arguments.add_demo,
        ("specbranch.cli.demo", "run_demo"),
    ),
    "generate": Command(
        "continue a prompt, streaming the text",
        arguments.add_generate,
        ("specbranch.cli.generate", "run_generate"),
    ),
    "chat": Command(
        "talk to a model",
        arguments.add_chat,
        ("specbranch.cli.chat", "run_chat"),
    ),
    "pairs": Command(
        "list the pairs that have a name",
        arguments.add_pairs,
        ("specbranch.cli.pairs", "run_pairs"),
    ),
    "pull": Command(
        "fetch a pair by its name",
        arguments.add_pull,
        ("specbranch.cli.pairs", "run_pull"),
    ),
    "compare": Command(
        "decode one prompt by every method",
        arguments.add_compare,
        ("specbranch.cli.compare", "run_compare"),
    ),
    "bench": Command(
        "measure every method's speed side by side",
        arguments.add_bench,
        ("specbranch.cli.bench", "run_bench"),
    ),
    "profile": Command(
        "measure what the pair's forwards take on this machine",
        arguments.add_profile,
        ("specbranch.cli.profile", "run_profile"),
    ),
    "simulate": Command(
        "what each method would gain on other hardware",
        arguments.add_simulate,
        ("specbranch.cli.simulate", "run_simulate"),
    ),
    "hrad": Command(
        "train the predictor of how much to draft",
        training_arguments.add_hrad,
        ("specbranch.cli.hrad", "run_hrad"),
    ),
    "draft": Command(
        "make a draft for a target, or see what one gains",
        training_arguments.add_draft,
        ("specbranch.cli.draft", "run_draft"),
    ),
    "vllm-args": Command(
        "print the line that serves a pair with vLLM here",
        arguments.add_vllm_args,
        ("specbranch.cli.vllm_args", "run_vllm_args"),
    ),
    "info": Command(
        "show the pair, its vocabularies, devices, versions",
        arguments.add_pair,
        ("specbranch.cli.info", "run_info"),
    ),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="specbranch",
        description="Lossless speculative decoding with rollback-aware branch parallelism.",
    )
    parser.add_argument("--version", action="version", version=f"specbranch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.help))
    return parser


def main(given: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2: bad input, 1: a check failed)."""
    options = build_parser().parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An encoding may lack characters: they are shown as \\uXXXX, and no text is lost.
            stream.reconfigure(errors="backslashreplace")
    unnamed = getattr(options, "pair", None) in (None, "toy")
    if getattr(options, "draft", None) == "auto" and unnamed and options.target == "target":
        options.draft = "draft"  # the bundled target's own
    limit_spinning()
    try:
        module, function = COMMANDS[options.command].run
        code: int = getattr(import_module(module), function)(options)
        return code
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
