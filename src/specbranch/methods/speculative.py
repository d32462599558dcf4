"""SpS: speculative decoding (Leviathan et al. 2023; Chen et al. 2023), draft and target in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from specbranch.config import SpeculativeConfig
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Round
from specbranch.policy.branching import DraftLengthPolicy
from specbranch.sequence import Sequence
from specbranch.workers.messages import Chain, CommitUpdate, Verification

AUTO_GAMMA = 5  # nothing hides the draft's time here: a short chain, as other engines have it


def speculative(
    sequence: Sequence, executors: Executors, options: SpeculativeConfig
) -> Iterator[Round]:
    """Draft γ tokens, verify them in one forward, keep what the target accepts and its own next."""
    most = AUTO_GAMMA if options.gamma == "auto" else options.gamma
    return draft_then_verify(sequence, executors, most, DraftLengthPolicy)


def draft_then_verify(
    sequence: Sequence, executors: Executors, most: int, rule: Callable[[], DraftLengthPolicy]
) -> Iterator[Round]:
    """The loop of SpS, with a say in how long each chain gets.

    Args:
        most: γ, tokens of the longest draft.
        rule: asked before each draft when to stop short of that.
    """
    assert executors.draft is not None
    resolution = CommitUpdate(sequence.length)
    while not sequence.finished:
        gamma = min(most, sequence.remaining - 1)
        drafting = executors.draft.submit("draft", sequence.id, resolution, gamma, rule())
        chain: Chain = drafting.result()
        verifying = executors.target.submit("verify", sequence.id, chain.tokens, chain.log_q)
        outcome: Verification = verifying.result()

        resolution = CommitUpdate(sequence.length + outcome.accepted, [outcome.token])
        done = commit(sequence, chain.tokens, outcome)
        done.draft_stage = True
        done.drafting, done.verification = drafting.span, verifying.span
        yield done
