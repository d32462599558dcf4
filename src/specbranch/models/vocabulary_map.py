"""A draft with another tokenizer: how it reads a target's tokens, and which of them it can draft.

Token-level intersection (TLI; Timor et al. 2025, arXiv 2502.05202, Algorithm 4): the draft scores
the tokens that both vocabularies have. Its q is a distribution over the target's tokens, as that of
a draft with a restricted head is, so that the acceptance rules stay exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specbranch.errors import InputError

_ANCHOR = "a"  # what comes before a token decides whether its space is written
_BROKEN = "\ufffd"  # a token that is a part of a character has no text of its own


@dataclass(frozen=True)
class VocabularyMap:
    """From a target's token ids to a draft's.

    Attributes:
        reads: the draft's ids, one or more, that spell each of the target's tokens.
        shared_target, shared_draft: the tokens that both have, int64 ``[shared]`` each.
        start: the draft's ids before a text, where its tokenizer puts some and the target's none.
    """

    reads: Sequence[Sequence[int]]
    shared_target: Tensor
    shared_draft: Tensor
    start: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        target: PreTrainedTokenizerBase,
        draft: PreTrainedTokenizerBase,
        names: tuple[str, str] = ("the target", "the draft"),
    ) -> VocabularyMap:
        """Compare two tokenizers, token by token, by the text that each token is.

        Raises:
            InputError: they have no token in common.
        """
        ours, theirs = _texts(target), _texts(draft)
        raw = draft.get_vocab()
        by_text: dict[str, int] = {}
        for i, text in enumerate(theirs):
            if text and _BROKEN not in text:
                by_text.setdefault(text, i)
        pairs: dict[int, int] = {}
        taken: set[int] = set()
        for i, text in enumerate(ours):
            if _BROKEN in text:
                found = raw.get(target.convert_ids_to_tokens(i))
                found = found if found is not None and _BROKEN in theirs[found] else None
            else:
                found = by_text.get(text)
            if found is not None and found not in taken:
                pairs[i] = found
                taken.add(found)
        if not pairs:
            raise InputError(
                f"the tokenizers of {names[0]} and {names[1]} have no token in common: "
                "choose another draft"
            )
        if target.eos_token_id is not None and draft.eos_token_id is not None:
            pairs = {i: d for i, d in pairs.items() if d != draft.eos_token_id}
            pairs[target.eos_token_id] = draft.eos_token_id
        spelled = _spell(draft, ours)
        reads = [[pairs[i]] if i in pairs else ids for i, ids in enumerate(spelled)]
        start: list[int] = []
        if (begin := _begin(draft)) is not None:
            if (ours_begin := _begin(target)) is not None:
                reads[ours_begin] = [begin]
            else:
                start = [begin]
        return cls(
            reads,
            torch.tensor(sorted(pairs)),
            torch.tensor([pairs[i] for i in sorted(pairs)]),
            start,
        )

    def to(self, device: torch.device) -> VocabularyMap:
        """The same with its tensors on a device."""
        shared = self.shared_target.to(device), self.shared_draft.to(device)
        return VocabularyMap(self.reads, *shared, self.start)


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What each token is in the middle of a text; empty where it cannot be told."""
    [anchor] = tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"][-1:] or [0]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    [before] = tokenizer.batch_decode([[anchor]], **options)
    found = tokenizer.batch_decode([[anchor, i] for i in range(len(tokenizer))], **options)
    return [text.removeprefix(before) if text.startswith(before) else "" for text in found]


def _spell(draft: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The draft's ids, at least one, of texts that follow others."""
    [before] = draft([_ANCHOR], add_special_tokens=False)["input_ids"]
    after = draft([_ANCHOR + text for text in texts], add_special_tokens=False)["input_ids"]
    alone = draft(list(texts), add_special_tokens=False)["input_ids"]
    unknown = draft.unk_token_id if draft.unk_token_id is not None else 0
    return [
        (ids[len(before) :] if ids[: len(before)] == before else own) or own or [unknown]
        for ids, own in zip(after, alone, strict=True)
    ]


def _begin(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the tokenizer puts before every text, if any."""
    ids: list[int] = tokenizer(_ANCHOR)["input_ids"]
    begin: int | None = tokenizer.bos_token_id
    return begin if ids and begin is not None and ids[0] == begin else None
