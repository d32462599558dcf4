"""What methods, engine and workers tell each other about texts: tokens and numbers, no models.

Every message speaks of one text; the requests in `workers.requests` carry lists of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from specbranch.config import Branching
from specbranch.logprobs import PlaceLogprobs
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.sequence_state import LookaheadRow
from specbranch.policy.draft_length import DraftLengthPolicy
from specbranch.policy.signal import Signal
from specbranch.sampling.pipeline import UNCONSTRAINED, TextConstraints
from specbranch.sampling_params import SamplingParams


@dataclass(frozen=True)
class OpenText:
    """The start of a text. Verifier and drafter get the same message.

    Attributes:
        id: the name of the text on every worker.
        prompt: token ids, at least one.
        params: how the text is sampled. The seed is set unless they are greedy.
        capacity: most tokens of the text, prompt included.
        vocabulary: the target's number of logits. The draft's logits are cut or padded to it.
        stop_ids: tokens after which nothing is drafted.
        branch_tokens: most tokens that the branches of one round hold together.
        padding: of the target's forwards.
        judged: whether H-RAD will be asked about the text, so that the verifier keeps features.
        certain: whether the verifier takes a draft token as the only one that could have been
            drafted, as vLLM does. The draft then says its likeliest token, also where the text is
            sampled, and its confidence is that token's probability after the warping.
        constraints: what the parameters come to for the text.
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    capacity: int
    vocabulary: int
    stop_ids: frozenset[int] = frozenset()
    branch_tokens: int = 0
    padding: Padding = NATURAL
    judged: bool = False
    certain: bool = False
    constraints: TextConstraints = UNCONSTRAINED


@dataclass(frozen=True)
class CommitUpdate:
    """What became of the drafter's last work on a text.

    The text is now: the first `length` tokens of the valid path, then `tokens`.

    Attributes:
        length: how many tokens of the path are valid. The path is the surviving branch's, or else
            the committed prefix with the chain.
        tokens: committed tokens that follow them.
        survivor: index of the branch of the last branch stage that survived; None if none did.
        committed: how many tokens of the valid path are committed, where some of its chain are, or
            of the survivor's continuation. None if the chain is all untested.
    """

    length: int
    tokens: list[int] = field(default_factory=list)
    survivor: int | None = None
    committed: int | None = None

    def then(self, tokens: Sequence[int]) -> CommitUpdate:
        """The same update with more committed tokens."""
        return replace(self, tokens=[*self.tokens, *tokens])


@dataclass(frozen=True)
class DraftText:
    """Draft a chain for a text.

    Attributes:
        id: of the text.
        update: applied before drafting.
        gamma: γ, most tokens to draft.
        policy: decides after each token whether the chain goes on.
        retrieval: most tokens to take from an earlier n-gram match instead of the draft model.
    """

    id: int
    update: CommitUpdate
    gamma: int
    policy: DraftLengthPolicy = field(default_factory=DraftLengthPolicy)
    retrieval: int = 0


@dataclass(frozen=True)
class Draft:
    """Draft tokens in a row: a chain, or the continuation of a branch.

    Attributes:
        tokens: ids, n of them.
        confidences: the draft's confidence at the place of each token; of a retrieved chain,
            `Match.strengths`.
        acceptance: estimated probability of acceptance of each token, given those before it.
        log_q: warped log-probabilities, float32 ``[n, vocabulary]``; only for the rejection rule.
        retrieved: whether the tokens come from an n-gram match and not from the draft model.
    """

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    acceptance: list[float] = field(default_factory=list)
    log_q: Tensor | None = None
    retrieved: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> Draft:
        """The first `length` tokens."""
        return replace(
            self,
            tokens=self.tokens[:length],
            confidences=self.confidences[:length],
            acceptance=self.acceptance[:length],
            log_q=None if self.log_q is None else self.log_q[:length],
        )


@dataclass(frozen=True)
class BranchText:
    """Branch for the outcomes of the verification that runs meanwhile.

    Attributes:
        id: of the text.
        update: applied before branching. The chain under verification ends the path after it.
        room: most tokens of chain and branch together that can be of use.
        gamma: γ, most draft steps.
        k_max: most branches.
        branching: which outcomes to prepare for, see `SpeculativeConfig`.
        epsilon: ε. A branch stops growing at a position whose acceptance estimate is lower.
        signal: of H-RAD, on the chain under verification.
        retrieval: most tokens of a branch to take from an earlier n-gram match.
    """

    id: int
    update: CommitUpdate
    room: int
    gamma: int
    k_max: int
    branching: Branching
    epsilon: float = 0.0
    signal: Signal | None = None
    retrieval: int = 0


@dataclass(frozen=True)
class Branch:
    """One outcome that the drafter prepared for, and its continuation.

    Attributes:
        accepted: how many tokens of the chain the outcome accepts.
        candidate: the target's token after those.
        continuation: what the draft says after the candidate.
    """

    accepted: int
    candidate: int
    continuation: Draft

    @property
    def outcome(self) -> tuple[int, int]:
        return self.accepted, self.candidate

    def __len__(self) -> int:
        return 1 + len(self.continuation)


@dataclass(frozen=True)
class VerifyText:
    """Verify a chain of draft tokens.

    Attributes:
        id: of the text.
        chain: draft tokens that continue the committed text. Empty for plain decoding.
        log_q: the draft's log-probabilities, float32 ``[n, vocabulary]``, for the rejection rule.
            Without them the chain has to match what the target chooses, which is lossless for any
            chain.
        lookahead_rows: further tokens of the same forward, for the likeliest token after each.
        confidences: the draft's at the places of the chain; an online H-RAD learns from them.
        judged: whether H-RAD may be asked after this verification.
    """

    id: int
    chain: list[int] = field(default_factory=list)
    log_q: Tensor | None = None
    lookahead_rows: Sequence[LookaheadRow] = ()
    confidences: Sequence[float] = ()
    judged: bool = True


@dataclass(frozen=True)
class VerifyResult:
    """The outcome of a verification.

    Attributes:
        accepted: how many draft tokens are accepted.
        token: the target's token after them.
        guesses: the likeliest token after each lookahead row; empty where the forward had no room
            for them.
        logprobs: of the accepted tokens and the target's, where the text's parameters ask for them.
        forced: what the text's grammar leaves no choice about after them.
    """

    accepted: int
    token: int
    guesses: list[int] = field(default_factory=list)
    logprobs: list[PlaceLogprobs] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
