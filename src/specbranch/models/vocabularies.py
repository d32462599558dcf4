"""Whether a target and a draft mean the same by their token ids."""

from __future__ import annotations

import logging

from transformers import PreTrainedTokenizerBase

from specbranch.errors import InputError

logger = logging.getLogger("specbranch")

MOST_DIFFERING = 0.1  # share of a draft's tokens that the target may have otherwise


def same_ids(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> bool:
    """Whether no token id means one thing to a target and another to its draft.

    Either may have tokens that the other one lacks.
    """
    ours = {i: token for token, i in target.get_vocab().items()}
    return all(ours.get(i, token) == token for token, i in draft.get_vocab().items())


def check_vocabularies(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Check that a draft's token ids mean the same to the target.

    A few may differ, such as the special tokens of a base model and of one that is made to talk:
    what the draft proposes by them is not accepted, and no text changes.

    Raises:
        InputError: the tokenizers are not of one kind, so that hardly anything would be accepted.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    differing = sum(ours.get(token) != i for token, i in theirs.items())
    if differing <= MOST_DIFFERING * len(theirs):
        if differing:
            logger.warning(
                "%d of %d tokens of %s are unknown to %s, or under another id: they are drafted in "
                "vain",
                differing,
                len(theirs),
                names[1],
                names[0],
            )
        return
    raise InputError(
        f"different vocabularies: {names[0]} has {len(ours)} tokens, {names[1]} has "
        f"{len(theirs)}, {differing} of them unknown to the target or under another id; "
        "choose a draft of the target's own family"
    )
