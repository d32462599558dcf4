"""What one round commits and counts, on rounds computed by hand; and where a text ends."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.distributions import Categorical

from specbranch.config import SpeculativeConfig
from specbranch.methods.adaedl import Threshold
from specbranch.methods.lookahead import Window
from specbranch.methods.registry import METHODS
from specbranch.metrics import Fates, Metrics, Round
from specbranch.models.sequence_state import LookaheadRow
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import FinishReason, Origin, TokenSequence
from tests.tables import Table, decode

VOCABULARY = 10


def story(words: dict[tuple[int, ...], list[float]]) -> Table:
    """A table from the text so far to the logits after it; what is not told is token 9."""

    def row(context):
        told = words.get(context)
        if told is None:
            return torch.nn.functional.one_hot(torch.tensor(9), VOCABULARY) * 20.0
        return torch.tensor(told)

    return row


def after(*tokens: int, sure: float = 20.0) -> list[float]:
    """Logits that rank `tokens` best first; `sure` is the lead of the first over the second."""
    logits = [0.0] * VOCABULARY
    for place, token in enumerate(reversed(tokens), start=1):
        logits[token] = 10.0 + place * 0.01
    logits[tokens[0]] += sure
    return logits


def text(*tokens: int) -> dict[tuple[int, ...], list[float]]:
    """A model that writes `tokens` after the prompt (0,)."""
    path = (0, *tokens)
    return {path[:i]: after(path[i]) for i in range(1, len(path))}


def run(
    method, target, draft, max_tokens, gamma=3, k_max=2, epsilon=0.3, branching="point", **more
):
    options = SpeculativeConfig(gamma, epsilon, k_max, branching)
    params = SamplingParams(max_tokens=max_tokens)
    return decode(method, story(target), story(draft), VOCABULARY, params, options, **more)


def test_speculative_rollback_and_bonus():
    done = run("speculative", text(1, 2, 3, 4, 5, 6, 7, 8), text(1, 2, 9), 7)
    first, second = done.rounds[:2]
    # Drafted 1 2 9, the target writes 1 2 3: two accepted, one rolled back, its own 3 committed.
    assert first.tokens == [1, 2, 3]
    assert first.origins == [Origin.CHAIN, Origin.CHAIN, Origin.TARGET]
    assert first.outcome == "rollback"
    assert first.fates == Fates(accepted=2, rolled_back=1)
    # The draft knows no more: 9 9 9 is rolled back whole.
    assert second.fates == Fates(rolled_back=3)
    # The last round may draft nothing: one token is left, and the target gives it.
    assert done.text.tokens == [1, 2, 3, 4, 5, 6, 7]
    assert done.rounds[-1].fates == Fates()
    assert done.text.finish_reason == FinishReason.LENGTH


def test_adaedl_stops_where_the_draft_hesitates():
    # After 1 2 the draft is flat, an entropy of log 10: a bound of 0.32, and λ starts at 0.5.
    flat = {(0, 1, 2): [0.0] * VOCABULARY, (0, 1, 2, 3): [0.0] * VOCABULARY}
    target, draft = text(1, 2, 3, 4, 5, 6), text(1, 2) | flat
    done = run("adaedl", target, draft, 6, gamma=5)
    first, second = done.rounds[:2]
    assert (first.chain, first.tokens, first.outcome) == (2, [1, 2, 3], "end")
    # The first token is drafted from anything; the flat row's likeliest is token 0.
    assert (second.tokens, second.outcome) == ([4], "rollback")
    assert second.fates.rolled_back == second.chain >= 1
    assert run("speculative", target, draft, 6, gamma=5).rounds[0].chain == 5


def test_adaedl_follows_the_acceptance():
    threshold = Threshold(most=4)
    # Half accepted: acceptance 0.9 → 0.5 · 0.9 + 0.5 · 0.5 = 0.7 < 0.9, so λ rises by 0.1 · 0.01.
    threshold.observe(drafted=4, accepted=2)
    assert (threshold.acceptance, threshold.value) == pytest.approx((0.7, 0.501))
    for _ in range(4):  # 0.85, 0.925, 0.9625, …: λ rises once more, then full drafts leave it alone
        threshold.observe(drafted=4, accepted=4)
    assert threshold.value == pytest.approx(0.502)
    threshold.observe(drafted=2, accepted=2)  # all of a short draft: it may be longer
    assert threshold.value == pytest.approx(0.501)
    for _ in range(2000):
        threshold.observe(drafted=4, accepted=0)
    assert threshold.value == 1
    assert threshold.policy().max_entropy == 0


@given(
    value=st.floats(0, 1),
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=8),
)
def test_adaedl_rule_is_the_papers_bound(value, logits):
    log_q = torch.tensor(logits).log_softmax(-1)
    entropy = Categorical(logits=log_q.double()).entropy().item()
    bound = 1 - (0.2 * entropy) ** 0.5
    assume(abs(bound - value) > 1e-4)
    assert Threshold(most=5, value=value).policy().ends_before(log_q) == (bound < value)


def test_pearl_verifies_before_and_after():
    target = text(1, 2, 3, 4, 5, 6, 7, 8, 9)
    # The draft is right up to 5, and again after 6.
    draft = text(1, 2, 3, 4, 5) | {(0, 1, 2, 3, 4, 5): after(7), (0, 1, 2, 3, 4, 5, 6): after(7)}
    done = run("pearl", target, draft, 12, gamma=3)
    first, second, third, fourth = done.rounds[:4]
    # Pre-verify: the target says 1, and the draft has 1 2 3.
    assert (first.chain, first.branch_tokens, first.tokens) == (0, 3, [1])
    assert (first.outcome, first.origins) == ("hit", [Origin.BRANCH])
    assert first.fates == Fates(accepted=1)
    # Post-verify: 2 3 while 4 5 7 is drafted, of which 4 is known to be right.
    assert (second.chain, second.branch_tokens, second.tokens) == (2, 3, [2, 3, 4])
    assert second.origins == [Origin.CHAIN, Origin.CHAIN, Origin.BRANCH]
    assert second.fates == Fates(accepted=3)
    # Post-verify: of 5 7 the second is wrong, and 9 9 9 was drafted after it.
    assert (third.outcome, third.tokens) == ("rollback", [5, 6])
    assert third.fates == Fates(accepted=1, rolled_back=1 + 3)
    # Pre-verify again.
    assert (fourth.chain, fourth.tokens, fourth.outcome) == (0, [7], "hit")
    assert not any(r.draft_stage or r.drafting for r in done.rounds)
    assert done.metrics.fates.total == done.drafted


def test_pearl_loses_one_verification_to_a_wrong_first_token():
    done = run("pearl", text(1, 2, 3), text(5), 3, gamma=4)
    assert [r.tokens for r in done.rounds] == [[1], [2], [3]]
    # 5 9 and 9 9: no more than two and one tokens were left to draft beside the target's own.
    assert [r.outcome for r in done.rounds] == ["miss", "miss", "end"]
    assert done.metrics.fates == Fates(rolled_back=done.drafted)


def test_lookup_takes_what_followed_the_longest_ngram():
    # Three tokens of the end stand at the start of the prompt; of two, the latest was otherwise.
    prompt = (1, 2, 3, 4, 5, 2, 3, 7, 1, 2, 3)
    words = {prompt: after(4), (*prompt, 4): after(5), (*prompt, 4, 5): after(6)}
    done = run("lookup", words, {}, 8, gamma=3, prompt=prompt)
    first, second = done.rounds[:2]
    assert first.tokens == [4, 5, 6]
    assert first.origins == [Origin.CHAIN, Origin.CHAIN, Origin.TARGET]
    assert first.outcome == "rollback"
    assert first.fates == Fates(accepted=2, rolled_back=1)
    assert first.drafting is None and not first.draft_stage
    # Nothing follows the only 6 so far.
    assert (second.chain, second.fates, second.tokens) == (0, Fates(), [9])
    # 9 9 9: the loop is found as soon as it repeats, and goes on with itself.
    assert [done.chain for done in done.rounds[2:]] == [0, 2]
    assert done.metrics.fates == Fates(accepted=4, rolled_back=1)


def test_lookahead_finds_the_targets_ngrams():
    def counting(context):
        return torch.nn.functional.one_hot(torch.tensor((context[-1] + 1) % 6), VOCABULARY) * 20.0

    params = SamplingParams(max_tokens=14)
    done = decode("lookahead", counting, counting, VOCABULARY, params)
    assert done.text.tokens == [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2]
    # The window begins as 0 0 0 0 of the prompt; 1 1 1 1 and 2 2 2 2 follow, and in the third round
    # 0 1 2 3 is known, then 1 2 3 4, and so on. In the seventh a text of 0 … 5 comes to 0 again.
    assert [(r.chain, r.accepted) for r in done.rounds] == [(0, 0)] * 6 + [(3, 3)] * 2
    assert done.metrics.fates == Fates(accepted=6)


def test_the_window_is_run_in_the_order_it_is_seen():
    window = Window([[1, 2, 3, 4], [5, 6, 7, 8]])
    lookahead_rows = window.lookahead_rows(length=10)
    # Under the third column: 7 follows 3, which follows 1 2.
    assert lookahead_rows[2] == LookaheadRow(3, 12, [0, 1])
    assert lookahead_rows[6] == LookaheadRow(7, 13, [0, 1, 2])
    window.observe([9, 9, 9, 9])
    assert window.ngrams == {}
    assert window.lookahead_rows(10)[10] == LookaheadRow(9, 14, [0, 1, 2, 6])
    window.observe([0, 0, 0, 0])
    assert window.ngrams == {1: [5, 9, 0], 2: [6, 9, 0], 3: [7, 9, 0], 4: [8, 9, 0]}
    assert window.rows == [[5, 6, 7, 8], [9, 9, 9, 9], [0, 0, 0, 0]]


def test_specbranch_survivor_continues_without_a_draft_stage():
    target = text(1, 2, 3, 4, 5, 6, 7, 8)
    draft = text(1, 2) | {
        # After 1 2 the draft hesitates between 8 and 3: the branch point. It knows how 3 goes on.
        (0, 1, 2): after(8, 3, sure=0.0),
        (0, 1, 2, 3): after(4),
        (0, 1, 2, 3, 4): after(5),
        (0, 1, 2, 3, 4, 5): after(6),
    }
    done = run("specbranch", target, draft, 8, gamma=3, k_max=5, epsilon=0.9)
    first, second = done.rounds[:2]
    assert first.draft_stage
    assert (first.chain, first.branches) == (2, 2)
    assert first.tokens == [1, 2, 3]
    assert first.origins == [Origin.CHAIN, Origin.CHAIN, Origin.BRANCH]
    assert first.outcome == "hit"
    # Branch 8 went on with 9 9 9: four tokens of hedge. Branch 3 holds 4 5 6 for the next round.
    assert first.fates == Fates(accepted=3, hedged=4)
    assert not second.draft_stage
    assert second.chain == 3
    assert second.tokens[:3] == [4, 5, 6]
    assert second.fates.accepted == 3


def test_specbranch_is_prepared_for_a_chain_that_breaks():
    target = text(1, 2, 3, 4, 5, 6, 7, 8)
    # The draft would rather say 9 than 2, and 9 again after it; after 2 it knows how to go on.
    draft = text(1) | {
        (0, 1): after(9, 2, sure=0.5),
        (0, 1, 2): after(3),
        (0, 1, 2, 3): after(4),
        (0, 1, 2, 3, 4): after(5),
    }
    done = run("specbranch", target, draft, 8, gamma=3, k_max=4, epsilon=0.0, branching="outcomes")
    first, second = done.rounds[:2]
    # The chain 1 9 9 breaks after 1, and the branch for that outcome goes on with 3 4 5.
    assert (first.chain, first.accepted, first.outcome) == (3, 1, "hit")
    assert first.tokens == [1, 2]
    assert first.origins == [Origin.CHAIN, Origin.BRANCH]
    assert first.fates.accepted == 2
    # Rolled back: 9 9. The branch at the end of the chain that they were to lead to was a hedge.
    assert first.fates.rolled_back == 2
    assert first.fates.hedged > 2
    assert not second.draft_stage
    assert second.tokens[:3] == [3, 4, 5]
    assert done.metrics.fates.total == done.drafted


def test_specbranch_goes_on_as_the_text_did_before():
    """A draft that knows nothing; the prompt has said 1 to 6, 1 to 6, and begins again."""
    prompt = (1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3)
    target = {prompt + (4, 5, 6, 1, 2)[:i]: after((4, 5, 6, 1, 2)[i]) for i in range(5)}
    done = run("specbranch", target, {}, 6, gamma=3, prompt=prompt)
    first, second = done.rounds[:2]
    assert first.draft_stage and first.retrieved
    # Of 4 5 6 it keeps all; the draft alone has branches for what follows, and only knows 9.
    assert (first.chain, first.accepted, first.tokens) == (3, 3, [4, 5, 6, 1])
    assert first.outcome == "miss"
    # Two tokens are left: one may be drafted.
    assert second.retrieved
    assert second.tokens == [2, 9]
    assert done.metrics.fates.total == done.drafted
    options = SpeculativeConfig(3, 0.3, 2, "point", retrieval=False)
    params = SamplingParams(max_tokens=6)
    without = decode("specbranch", story(target), story({}), VOCABULARY, params, options, prompt)
    assert not any(r.retrieved for r in without.rounds)
    assert without.text.tokens == done.text.tokens


def test_specbranch_miss_and_rollback_lose_the_likeliest_branch():
    target = text(1, 2, 3, 4, 5)
    draft = text(1) | {(0, 1): after(7, 8, sure=0.0), (0, 1, 2): after(6)}
    done = run("specbranch", target, draft, 5, gamma=2, k_max=5, epsilon=0.9)
    first, second = done.rounds[:2]
    assert first.outcome == "miss"
    assert first.tokens == [1, 2]
    assert first.origins[-1] == Origin.TARGET
    # Branches 7 and 8, each with 9 after it (two would not fit): the first was the main path.
    assert first.fates.accepted == 1
    assert first.fates.rolled_back == first.fates.hedged > 0
    assert second.outcome == "rollback"
    assert second.accepted == 0
    assert second.tokens == [3]
    assert second.fates.accepted == 0
    assert second.fates.rolled_back >= 2


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("stop", range(1, 9))
def test_nothing_after_the_stop_leaks_out(method, stop):
    """The stop falls on every place of a chain and of a branch; drafts run past it."""
    story_of_both = text(1, 2, 3, 4, 5, 6, 7, 8)
    for ends in ({"stop_ids": frozenset({stop})}, {"ends_text": lambda t: t[-1] == stop}):
        for epsilon, branching in product((0.0, 1.0), ("outcomes", "point")):
            more = {"epsilon": epsilon, "branching": branching, **ends}
            done = run(method, story_of_both, story_of_both, 20, **more)
            assert done.text.tokens == list(range(1, stop + 1))
            assert done.text.finish_reason == FinishReason.STOP
            assert [t for r in done.rounds for t in r.tokens] == done.text.tokens
            assert done.metrics.fates.total == done.drafted


@pytest.mark.parametrize("method", ["speculative", "specbranch"])
def test_the_draft_stops_at_the_end_of_text(method):
    both = text(1, 2, 8)
    done = run(method, both, both, 20, gamma=8, stop_ids=frozenset({8}))
    assert done.text.tokens == [1, 2, 8]
    assert done.drafted == done.metrics.fates.accepted == 3


def test_commit_stops_inside_the_tokens_it_is_given():
    sequence = TokenSequence(1, [0], max_tokens=3)
    origins = [Origin.CHAIN] * 5
    assert sequence.commit([4, 5, 6, 7, 8], origins) == 3
    assert sequence.tokens == [4, 5, 6]
    assert sequence.finish_reason == FinishReason.LENGTH
    assert (sequence.length, sequence.remaining) == (4, 0)


def test_metrics_of_hand_made_rounds():
    metrics = Metrics()
    metrics.add(
        Round(
            draft_stage=True,
            chain=4,
            accepted=2,
            outcome="rollback",
            tokens=[1, 2, 3],
            fates=Fates(accepted=2, rolled_back=5, hedged=7),
        )
    )
    metrics.add(
        Round(chain=1, outcome="hit", tokens=[4, 5], fates=Fates(accepted=2, pruned=1, in_flight=3))
    )
    metrics.seconds = 0.5
    assert metrics.mean_accepted_length == 2.5
    assert metrics.rollback_rate == 0.5
    assert metrics.tokens_per_second == 10
    assert metrics.fates.total == 20
    assert (metrics.draft_stages, metrics.hits, metrics.rollbacks) == (1, 1, 1)
    doubled = metrics + metrics
    assert doubled.mean_accepted_length == 2.5
    assert doubled.fates == Fates(8, 10, 2, 14, 6)
    assert Metrics().rollback_rate == Metrics().mean_accepted_length == 0
