"""The commands' arguments that say how text is sampled."""

from __future__ import annotations

import argparse
from pathlib import Path


def token_ids(given: str) -> list[int]:
    """Token ids between commas."""
    return [int(each) for each in given.split(",")]


def bias(given: str) -> tuple[int, float]:
    """A token id and what is added to its logit, such as ``17=-5``."""
    token, _, value = given.partition("=")
    return int(token), float(value)


class _Gather(argparse.Action):
    """Gathers pairs from a repeated option into a dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(values, tuple)
        found = dict(getattr(namespace, self.dest) or {})
        setattr(namespace, self.dest, found | dict([values]))


def text_or_file(given: str) -> str:
    """What a file says, or the text itself if there is no such file."""
    try:
        file = Path(given)
        return file.read_text(encoding="utf-8") if file.is_file() else given
    except OSError:  # a text may be too long for the name of a file
        return given


def add_structured_outputs(parser: argparse.ArgumentParser) -> None:
    """What the text has to be: fields of `StructuredOutputsParams`."""
    group = parser.add_argument_group("structured outputs: the text is one of these")
    add = group.add_mutually_exclusive_group().add_argument
    add("--json-schema", type=text_or_file, metavar="SCHEMA", help="JSON by a schema, or its file")
    add("--json-object", action="store_true", default=None, help="any JSON object")
    add("--regex", help="what a regular expression matches")
    add("--choice", action="append", help="this string, or another one (repeatable)")
    add("--grammar", type=text_or_file, help="EBNF (GBNF or Lark), or its file")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How text is sampled: fields of `SamplingParams`."""
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--max-tokens", type=int, default=128)
    if parser.get_default("temperature") is None:
        add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-k", type=int, help="likewise the others (default: the target's generation_config)")
    add("--top-p", type=float)
    add("--min-p", type=float)
    add("--repetition-penalty", type=float)
    add("--presence-penalty", type=float, default=0.0, help="of tokens generated before, -2 to 2")
    add("--frequency-penalty", type=float, default=0.0, help="likewise, for each time")
    add("--seed", type=int)
    add("--stop", action="append", default=[], help="string that ends the text (repeatable)")
    add("--stop-token-ids", type=token_ids, metavar="ID,ID", help="tokens that end the text")
    add("--min-tokens", type=int, default=0, help="nothing ends the text before so many tokens")
    add("--ignore-eos", action="store_true", help="go on after the end-of-text token")
    add(
        "--logit-bias",
        type=bias,
        action=_Gather,
        metavar="ID=BIAS",
        help="added to the logit of a token (repeatable)",
    )
    add("--allowed-token-ids", type=token_ids, metavar="ID,ID", help="only these are generated")
    add(
        "--bad-word",
        dest="bad_words",
        action="append",
        default=[],
        help="string that is never generated (repeatable)",
    )
    add(
        "--acceptance",
        default="coupled",
        help="rule for sampled drafts: coupled (same seed, same text with any method) or rejection",
    )


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """What is told of a text, and what is part of it."""
    group = parser.add_argument_group("outputs")
    add = group.add_argument
    add("--n", type=int, default=1, help="samples of each prompt, with seeds that follow")
    add("--logprobs", type=int, help="with --json: log-probabilities, of so many likeliest tokens")
    add("--prompt-logprobs", type=int, help="likewise of the prompt")
    add("--truncate-prompt-tokens", type=int, help="keep so many of the prompt, the last; -1 fits")
    add(
        "--include-stop-str-in-output",
        action="store_true",
        help="the string or token that ends the text is part of it",
    )
    add(
        "--keep-special-tokens",
        dest="skip_special_tokens",
        action="store_false",
        help="special tokens are part of the text",
    )
