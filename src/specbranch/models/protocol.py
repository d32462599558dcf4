"""The interfaces of model runners: what the workers use of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.sequence_state import LookaheadRow, Output


class DraftRunner(Protocol):
    """A causal language model over caches that fork and rewind; see `CausalRunner`.

    Attributes:
        vocabulary: number of logits.
        positions: most tokens of a text.
    """

    vocabulary: int
    positions: int

    def open(self, sequence: int, capacity: int, padding: Padding = NATURAL) -> None:
        """Start an empty sequence that holds at most `capacity` tokens at once."""

    def close(self, sequence: int) -> None:
        """Forget a sequence, if there is one."""

    def length(self, sequence: int) -> int:
        """Number of tokens of the committed prefix."""

    def prefill(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append tokens to the prefix without their logits."""

    def run_many(self, batch: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """Append tokens to several prefixes; logits ``[n, vocabulary]`` of each."""

    def rewind(self, sequence: int, length: int) -> None:
        """Forget the prefix's tokens after the first `length`, and all branches."""

    def fork(self, sequence: int, positions: Sequence[int], branch: int | None = None) -> list[int]:
        """Start a branch at each of `positions`; returns their ids."""

    def step_many(self, batch: Sequence[tuple[int, Mapping[int, int]]]) -> list[Tensor]:
        """Append a token to branches of several sequences; logits ``[n, vocabulary]`` of each."""

    def keep(self, sequence: int, branch: int) -> None:
        """Make a branch's path the prefix."""

    def cache_size(self, sequence: int) -> CacheSize:
        """What a sequence's cache takes."""

    def describe(self, name: str) -> ModelInfo:
        """What the model is."""


class ModelRunner(DraftRunner, Protocol):
    """One that can verify, too."""

    def run(
        self,
        sequence: int,
        tokens: Sequence[int],
        layers: int = 0,
        lookahead_rows: Sequence[LookaheadRow] = (),
    ) -> Output:
        """Append tokens to the prefix."""

    def embeddings(self, tokens: Sequence[int]) -> Tensor:
        """Input embeddings ``[n, hidden_size]``."""
