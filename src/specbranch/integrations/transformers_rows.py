"""The rows of a batch, and the caller's processors as they see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specbranch.errors import InputError

# The costly ones, and sure to treat every row alike: no need to show them the whole batch.
_ROWWISE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)


@dataclass(frozen=True)
class Row:
    """One text of a batch.

    Attributes:
        index: which row of how many (`batch`).
        ids: int64 ``[1, n]``, padding included.
        prompt: the same without padding.
    """

    index: int
    batch: int
    ids: Tensor
    prompt: list[int]

    def with_generated(self, tokens: Tensor) -> Tensor:
        """Ids as `transformers` has them after `tokens` ``[1, m]``, int64 ``[1, n + m]``."""
        return torch.cat([self.ids, tokens.to(self.ids)], dim=1)


class AsInBatch(LogitsProcessor):
    """The caller's processors, shown one row of the batch as if the whole batch were there.

    Some count positions from the padded beginning, some have one setting for each row.
    """

    def __init__(self, processors: LogitsProcessorList, row: Row) -> None:
        self._processors = processors
        self._row = row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        row = self._row
        ids = row.with_generated(input_ids[:, len(row.prompt) :])
        # A copy: a processor may write to it, and the logits are looked at again.
        processed = scores.to(row.ids.device, copy=True)
        for processor in self._processors:
            if row.batch == 1 or isinstance(processor, _ROWWISE):
                processed = processor(ids, processed)
            else:
                whole = processor(ids.repeat(row.batch, 1), processed.repeat(row.batch, 1))
                processed = whole[row.index : row.index + 1]
        return processed.to(scores.device)


def rows_of(input_ids: Tensor, model_kwargs: dict[str, Any]) -> list[Row]:
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    if not input_ids.shape[1] or not bool(mask[:, -1].all()):
        raise InputError(
            "every prompt must end with a token that the attention mask shows: pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    positions = model_kwargs.get("position_ids")
    counted = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if positions is not None and not (
        positions.dim() == 2 and torch.equal(positions.expand_as(counted), counted)
    ):
        raise InputError("specbranch counts positions itself: leave out position_ids=")
    batch = input_ids.shape[0]
    return [
        Row(i, batch, input_ids[i : i + 1], input_ids[i][mask[i].bool()].tolist())
        for i in range(batch)
    ]
