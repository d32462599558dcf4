"""The commands' arguments that say how text is sampled."""

from __future__ import annotations

import argparse


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


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How text is sampled: fields of `SamplingParams`."""
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--max-tokens", type=int, default=128)
    if parser.get_default("temperature") is None:
        add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-k", type=int, default=0)
    add("--top-p", type=float, default=1.0)
    add("--min-p", type=float, default=0.0)
    add("--repetition-penalty", type=float, default=1.0)
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
