"""What the arguments of the commands that train are: their names, defaults and help."""

from __future__ import annotations

import argparse
from pathlib import Path

from specbranch.cli.arguments import add_drafting, add_pair
from specbranch.cli.sampling_arguments import add_sampling


def add_hrad(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    collect = steps.add_parser("collect", help="record what becomes of the pair's own drafts")
    add = collect.add_argument
    add("--prompts", type=Path, nargs="+", required=True, help=".jsonl files, one prompt a row")
    add("--out", type=Path, required=True, help="folder of records; goes on with one it began")
    add("--limit", type=int, help="only the first N prompts of each file")
    add("--prompt-tokens", type=int, default=512, help="cut longer prompts there (default 512)")
    add("--gamma", type=int, default=8, help="tokens drafted in a round (default 8)")
    add("--layers", type=int, default=4, help="of the target's last layers to look at (default 4)")
    add_pair(collect)
    add_sampling(collect)
    train = steps.add_parser("train", help="train on records, and compare with simpler rules")
    add = train.add_argument
    add("records", type=Path, help="folder that `collect` made")
    add("--out", type=Path, required=True, help="the predictor: a .safetensors file")
    add("--epochs", type=int, default=20, help="most of them (default 20); stops early")
    add("--batch-size", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--held-out", type=float, default=0.2, help="share of prompts to report on (default 0.2)")
    add("--plot", type=Path, help="draw the feature space: .svg or .png")


def add_draft(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    make = steps.add_parser("make", help="train a draft on what the target answers")
    add = make.add_argument
    add("--target", required=True, help="folder, GGUF file or hub name")
    add("--out", type=Path, required=True, help="folder of the draft; goes on with one it began")
    add(
        "--prompts",
        type=Path,
        nargs="+",
        default=[],
        help="files of prompts like your users'; by default the target writes some itself",
    )
    add("--limit", type=int, help="only the first N prompts of each file")
    add("--size", help="parameters of a new model, such as 15M (default: a tenth of the target's)")
    add("--from-layers", help="instead: a cut of the target with these layers, such as 0,1,29")
    add("--init", help="instead: a draft to train on, as for a target that was fine-tuned")
    add(
        "--minutes", type=float, default=60.0, help="of answers and training; H-RAD takes more (60)"
    )
    add("--max-tokens", type=int, default=192, help="most tokens of an answer (default 192)")
    add(
        "--vocabulary",
        type=int,
        default=8192,
        help="most tokens that it can draft: the head is most of a small draft (default 8192; "
        "0: all)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    report = steps.add_parser("report", help="agreement, costs, and what each method would gain")
    add = report.add_argument
    add("--prompts", type=Path, nargs="+", default=[], help="files, a domain each (default: a few)")
    add("--limit", type=int, default=4, help="only the first N prompts of each file (default 4)")
    add("--prompt-tokens", type=int, default=512, help="cut longer prompts there (default 512)")
    add("--max-tokens", type=int, default=96, help="tokens of each text (default 96)")
    add("--repeats", type=int, default=1, help="of the timings (default 1)")
    add("--profiles", nargs="+", default=[], help="other hardware: names or files")
    add_drafting(report)
    add_pair(report)
    parser.set_defaults(method=None)
