"""What the decoder and the executors tell each other: tokens and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from specbranch.config import Branching
from specbranch.models.padding import NATURAL, Padding
from specbranch.policy.latency import LatencyLine
from specbranch.policy.signal import Signal
from specbranch.sampling_params import SamplingParams


@dataclass(frozen=True)
class Opening:
    """Start of a sequence: sent to both executors.

    Attributes:
        prompt: token ids, at least one.
        capacity: most tokens the text can come to, prompt included.
        vocabulary: the target's number of logits; the draft's are cut or padded to it.
        stop_ids: tokens after which nothing need be drafted.
        branch_tokens: most tokens that the branches of one round hold together.
        padding: of the target's forwards.
        signals: whether the target's verifications are to come with H-RAD's signals.
    """

    prompt: list[int]
    params: SamplingParams
    capacity: int
    vocabulary: int
    stop_ids: frozenset[int] = frozenset()
    branch_tokens: int = 0
    padding: Padding = NATURAL
    signals: bool = False


@dataclass(frozen=True)
class CommitUpdate:
    """What became of the draft's last work: the text's first `length` tokens, then `tokens`.

    Attributes:
        survivor: index of the last branch stage's branch that goes on; None if none does.
        length: how many tokens of the (survivor's) path are still valid.
        tokens: committed tokens that follow them.
    """

    length: int
    tokens: list[int] = field(default_factory=list)
    survivor: int | None = None

    def then(self, tokens: Sequence[int]) -> CommitUpdate:
        """The same, and more tokens committed."""
        return replace(self, tokens=[*self.tokens, *tokens])


@dataclass(frozen=True)
class BranchPlan:
    """How to branch.

    Attributes:
        room: most tokens of chain and branch together that can be of use.
        gamma: most draft steps.
        k_max: most branches.
        branching: for which outcomes, see `SpeculativeConfig`.
        epsilon: a branch stops growing at a position whose chance of acceptance is below.
        step: what a step of so many branches takes, so that in each step those grow that are worth
            it; None has all grow in every step.
        signal: of H-RAD, on the chain that is being verified.
        retrieval: most tokens to take from earlier in the text, instead of drafting them.
    """

    room: int
    gamma: int
    k_max: int
    branching: Branching
    epsilon: float = 0.0
    step: LatencyLine | None = None
    signal: Signal | None = None
    retrieval: int = 0


@dataclass(frozen=True)
class Chain:
    """Draft tokens in a row.

    Attributes:
        confidences: the draft's raw top probability at the place of each token; of a retrieved
            chain, `Match.strengths`.
        acceptance: estimated from them, by what the pair's outcomes were so far.
        log_q: warped log-probabilities ``[n, vocabulary]``, only for the rejection rule.
        retrieved: from earlier in the text, not from the draft.
    """

    tokens: list[int]
    confidences: list[float]
    acceptance: list[float]
    log_q: Tensor | None = None
    retrieved: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> Chain:
        """The first `length` tokens."""
        log_q = None if self.log_q is None else self.log_q[:length]
        return replace(
            self,
            tokens=self.tokens[:length],
            confidences=self.confidences[:length],
            acceptance=self.acceptance[:length],
            log_q=log_q,
        )


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
        return 1 + len(self.chain)


@dataclass(frozen=True)
class Verification:
    """A verification's outcome: draft tokens accepted, and the target's token after them.

    Attributes:
        guesses: the likeliest token after each lookahead; none where there was no room for them.
    """

    accepted: int
    token: int
    guesses: list[int] = field(default_factory=list)
