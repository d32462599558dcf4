"""What the commands' arguments are: their names, defaults and help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from specbranch.cli.sampling_arguments import (
    add_outputs,
    add_sampling,
    add_structured_outputs,
)

_TIMELINE = "draw what the executors did when: .svg, .png, or .json for Perfetto"


def number_or_word(given: str) -> int | str:
    return int(given) if given.lstrip("-").isdigit() else given


def float_or_word(given: str) -> float | str:
    try:
        return float(given)
    except ValueError:
        return given


def _add_former(
    parser: argparse.ArgumentParser, option: str, dest: str, kind: Callable[[str], object]
) -> None:
    """Accept an option's former name, which help does not show."""
    parser.add_argument(
        option, dest=dest, type=kind, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )


def add_generate(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("prompt", nargs="?", help="the text to continue; '-' reads standard input")
    source.add_argument("--file", type=Path, help="file with the prompt; a .jsonl has one a row")
    add = parser.add_argument
    add("--limit", type=int, help="only the first N prompts of the file")
    add("--json", action="store_true", help="one JSON object a prompt, no text")
    add("--chat", action="store_true", help="the prompt is said to the model: its chat template")
    add("--system", help="with --chat: what the model is told before")
    add("--timeline", type=Path, help=_TIMELINE)
    add("--no-color", action="store_true", help="plain text on any terminal")
    add(
        "--compare",
        action="store_true",
        help="run plain decoding too, check that the tokens are the same, print both in a table",
    )
    add(
        "--method",
        help="specbranch (default), pearl, speculative, adaedl; without a draft: lookup, "
        "lookahead, autoregressive",
    )
    add_drafting(parser)
    add_pair(parser)
    add_sampling(parser)
    add_structured_outputs(parser)
    add_outputs(parser)


def add_vllm_args(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", required=True, help="model folder, or name on the Hugging Face hub")
    add("--draft", required=True, help="the same, or a GGUF file")
    add("--num-speculative-tokens", type=int, help="most tokens of a draft (CPU: 5, GPU: 8)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="of the target")
    add("--target-cores", help="such as 0-3,6; by default the draft's process gets a quarter")
    add("--draft-cores", help="the same for the draft's process")


def add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", nargs="?", default="", help="what to ask (default: a question about the sky)")
    add("--max-tokens", type=int, default=160)
    add("--pair", default="smollm2", help="whom to ask (default smollm2)")


def add_chat(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--system", help="what the model is told before the conversation")
    add("--no-color", action="store_true", help="plain text on any terminal")
    add("--method", help="as for generate")
    add_drafting(parser)
    add_pair(parser)
    add_sampling(parser)
    parser.set_defaults(max_tokens=512)


def add_pairs(_: argparse.ArgumentParser) -> None:
    """No arguments."""


def add_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pair", help="its name: see `specbranch pairs`")


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--timeline", type=Path, help=_TIMELINE)
    add_drafting(parser)
    parser.set_defaults(speculate="always")  # to see what the methods do
    add_pair(parser)
    add_sampling(parser)


def add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the pair")
    add = group.add_argument
    add("--pair", help="a pair by name, instead of a target: see `specbranch pairs`")
    add(
        "--target",
        default="target",
        help="bundled name, folder, GGUF file or hub name (default: bundled)",
    )
    add(
        "--draft",
        default="auto",
        help="likewise; 'draft-weak' is bundled too, 'none' for none; by default the bundled one, "
        "and for a target of your own none",
    )
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    add("--quantization", help="int8: the target's linear layers in 8 bits, on a CPU with VNNI")
    add("--draft-quantization", help="likewise the draft's, which changes no text")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    add("--target-device", help="device of the target alone")
    add("--draft-device", help="device of the draft alone")
    add("--sharded", action="store_true", help="spread the target over all GPUs")
    add(
        "--enforce-eager",
        action="store_true",
        help="run the models as transformers does, uncompiled",
    )
    add(
        "--padding",
        type=number_or_word,
        default="auto",
        help="tokens of a target forward: auto (default) and a number N (padded) are bit-exact for "
        "all methods; 0 is not",
    )
    _add_former(parser, "--width", "padding", number_or_word)
    add("--max-model-len", type=int, help="most tokens of a text, prompt included")
    add(
        "--generation-config",
        default="auto",
        help="auto (default): penalties and cut-offs that are not given are the target's; none",
    )


def add_pair(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    group = parser.add_argument_group("executor: where the models run")
    add = group.add_argument
    add(
        "--executor",
        default="auto",
        help="process: each model on its own cores or GPU; thread: each on its own CUDA stream; "
        "inline: one after the other; auto (default) picks",
    )
    _add_former(parser, "--lanes", "executor", str)
    add("--target-cores", help="cores that the target runs on, such as 0-2 (default: divided)")
    add("--draft-cores", help="cores of the draft's process")
    add(
        "--executor-timeout",
        type=float,
        help="seconds after which a draft's process that does not answer is given up (600)",
    )
    _add_former(parser, "--lane-timeout", "executor_timeout", float)
    add(
        "--startup-timeout",
        type=float,
        help="seconds after which a process that still loads is given up (1800)",
    )
    add("--profile", type=Path, help="virtual executors, as fast as this JSON file says")


def add_drafting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    add = group.add_argument
    add(
        "--num-speculative-tokens",
        "--gamma",
        dest="gamma",
        type=number_or_word,
        help="most tokens drafted ahead in a round; auto follows their speed",
    )
    add(
        "--epsilon",
        type=float_or_word,
        help="chance of acceptance below which a position is uncertain",
    )
    add("--k-max", type=number_or_word, help="most branches in one round")
    add("--branching", help="outcomes (wherever the chain may break), point (at its end), even")
    add("--hrad", help="predictor file, none, online, or auto (default): the bundled pair's")
    add(
        "--no-retrieval",
        dest="retrieval",
        action="store_const",
        const=False,
        help="do not draft a text that repeats itself from itself",
    )
    add("--speculate", help="always, or auto: the draft works only while that is faster")


def add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "suites",
        nargs="*",
        help="a .jsonl file with a prompt a row; ten (default: ten prompts that are shipped); or "
        "humaneval, gsm8k, cnndm, spec_bench, through the datasets library or from --data",
    )
    add("--data", type=Path, help="folder with public suites as files, such as humaneval.jsonl")
    add(
        "--out", type=Path, help="folder for report, answers and records; goes on with one it began"
    )
    add("--limit", type=int, help="questions of each suite, spread over it (default 10)")
    add("--repeats", type=int, help="of the whole (default 3)")
    add("--drafts", nargs="+", help="several, one after the other (default: --draft)")
    add("--temperatures", nargs="+", type=float, help="0 is greedy (default 0)")
    add("--methods", nargs="+", help="only these rows, besides plain and specbranch")
    add("--prompt-tokens", type=int, default=512, help="cut longer prompts there (default 512)")
    add(
        "--placements",
        nargs="+",
        choices=["equal-hardware", "device-each"],
        default=["equal-hardware", "device-each"],
        help="who has which hardware: all of it as each method likes best, or target and draft "
        "each their own cores or device (default: both, in tables of their own)",
    )
    add("--overlap", action="store_true", help="measure how well the executors overlap, too")
    add("--branch-costs", action="store_true", help="measure what k branches cost, too")
    add("--quick", action="store_true", help="3 questions a suite, 48 tokens, once: a glance")
    add(
        "--reproduce",
        choices=["paper"],
        help="the paper's grid: both bundled drafts, its suites, temperatures 0 and 1; the "
        "published figures are laid beside ours",
    )
    # Which temperatures, and how many tokens, is the grid's choice.
    parser.set_defaults(temperature=0.0)
    add_drafting(parser)
    add_pair(parser)
    add_sampling(parser)
    parser.set_defaults(max_tokens=None)


def add_simulate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", type=Path, nargs="*", help="prompts: .jsonl, one a row (default: a few built in)")
    add("--list", action="store_true", help="show the built-in profiles and their sources")
    add("--limit", type=int, help="only the first N prompts (recordings: rows) of each file")
    add("--prompt-tokens", type=int, default=512, help="cut longer prompts there (default 512)")
    add("--max-tokens", type=int, default=96, help="tokens of each text (default 96)")
    add("--output", type=Path, help="write the figures as JSON, too")

    add = parser.add_argument_group("the hardware: a profile, or speeds by hand").add_argument
    add("--profile", help="a built-in one by name, or a file that `specbranch profile` wrote")
    add("--c", type=float, help="time of a target forward, in draft steps")
    add("--draft-ms", type=float, help="milliseconds of a draft step (default 2)")
    add("--branch-cost", type=float, help="what a further branch adds to a step (default 0.05)")

    add = parser.add_argument_group("sweep").add_argument
    add("--sweep-c", type=float, nargs="+", help="speed ratios to try SpecBranch with")
    add("--sweep-gamma", type=number_or_word, nargs="+", help="γ to try (default 2 4 8 12 auto)")
    add("--plot", type=Path, help="heat map of the sweep: .svg or .png")

    add = parser.add_argument_group("recorded acceptance, instead of a pair").add_argument
    add(
        "--acceptance",
        type=Path,
        help="JSON lines: for every position how many tokens a verification would commit",
    )
    add("--column", default="eagle", help="of those rows (default eagle)")
    add(
        "--hit",
        type=float,
        help="chance that a branch has the token after an accepted chain (default 0.79)",
    )
    add_drafting(parser)
    add_models(parser)
    parser.set_defaults(
        executor="virtual", target_cores=None, draft_cores=None, executor_timeout=None
    )


def add_profile(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", type=Path, nargs="*", help="prompts: .jsonl, one a row (default: a few built in)")
    add("--out", type=Path, required=True, help="the profile: a .json file")
    add("--limit", type=int, help="only the first N prompts of each file")
    add("--prompt-tokens", type=int, default=512, help="cut longer prompts there (default 512)")
    add("--max-tokens", type=int, default=96, help="tokens of each text (default 96)")
    add("--repeats", type=int, default=2, help="of the whole (default 2)")
    add_pair(parser)
