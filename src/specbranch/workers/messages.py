"""What the decoder and the lanes tell each other: tokens and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from specbranch.models.width import NATURAL, Width
from specbranch.sampling import SamplingParams


@dataclass(frozen=True)
class Opening:
    """Start of a sequence: sent to both lanes.

    Attributes:
        prompt: token ids, at least one.
        capacity: most tokens the text can come to, prompt included.
        vocabulary: the target's number of logits; the draft's are cut or padded to it.
        stop_ids: tokens after which nothing need be drafted.
        branch_tokens: most tokens that the branches of one round hold together.
        width: of the target's forwards.
    """

    prompt: list[int]
    params: SamplingParams
    capacity: int
    vocabulary: int
    stop_ids: frozenset[int] = frozenset()
    branch_tokens: int = 0
    width: Width = NATURAL


@dataclass(frozen=True)
class Resolution:
    """What became of the draft's last work: the text's first `length` tokens, then `tokens`.

    Attributes:
        survivor: index of the last branch stage's branch that goes on; None if none does.
        length: how many tokens of the (survivor's) path are still valid.
        tokens: committed tokens that follow them.
    """

    length: int
    tokens: list[int] = field(default_factory=list)
    survivor: int | None = None


@dataclass(frozen=True)
class Chain:
    """Draft tokens in a row.

    Attributes:
        confidences: the draft's raw top probability at the place of each token.
        log_q: warped log-probabilities ``[n, vocabulary]``, only for the rejection rule.
    """

    tokens: list[int]
    confidences: list[float]
    log_q: Tensor | None = None


@dataclass(frozen=True)
class Branch:
    """One outcome that the draft prepared for, and its continuation of it.

    Attributes:
        accepted: how many tokens of the chain come before it; all of them at the branch point.
        candidate: the target's token after those.
    """

    accepted: int
    candidate: int
    chain: Chain

    @property
    def outcome(self) -> tuple[int, int]:
        return self.accepted, self.candidate

    def __len__(self) -> int:
        return 1 + len(self.chain.tokens)


@dataclass(frozen=True)
class Verification:
    """A verification's outcome: draft tokens accepted, and the target's token after them."""

    accepted: int
    token: int
