"""What a runner keeps of a sequence, and what its forwards take and give."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from specbranch.models.kv_cache import StaticKVCache
from specbranch.models.padding import Padding


@dataclass
class BranchState:
    """A path that leaves the prefix after `fork` tokens and goes on through its own `slots`."""

    fork: int
    slots: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.fork + len(self.slots)


@dataclass
class SequenceState:
    """One sequence: a prefix in slots ``0 … length − 1``, and branches in the slots after it."""

    kv_cache: StaticKVCache
    padding: Padding
    length: int = 0
    used: int = 0
    branches: dict[int, BranchState] = field(default_factory=dict)
    next_branch: int = 0


@dataclass(frozen=True)
class LookaheadRow:
    """A token that is run beside those that are appended to the prefix, for its logits alone.

    It sees the prefix up to the first appended token, some lookahead_rows, and itself.

    Attributes:
        position: in the text.
        sees: which of the lookahead_rows before it.
    """

    token: int
    position: int
    sees: list[int]


@dataclass(frozen=True)
class Output:
    """What a forward gives for its ``n`` new tokens.

    Attributes:
        logits: float32 ``[n, vocabulary]``.
        hidden: states of the last K layers, ``[K, n, hidden_size]``, in the model's dtype; None
            unless asked for.
        lookahead_rows: logits of the m lookahead_rows, float32 ``[m, vocabulary]``; None if there
            were none, or
            no room for them.
    """

    logits: Tensor
    hidden: Tensor | None = None
    lookahead_rows: Tensor | None = None
