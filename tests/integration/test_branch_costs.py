"""What branches cost, by a profile, so that every figure is known beforehand."""

import pytest

from specbranch import LLM
from specbranch.bench.branch_costs import HEADINGS, branch_costs, plot, table
from specbranch.bench.contenders import Pair
from specbranch.bench.trials import CHAIN
from specbranch.config import MOST_GAMMA
from specbranch.errors import InputError
from specbranch.executors.virtual import ModelLatency, Profile
from tests.tiny import POSITIONS, tiny_model

PROMPTS = [[5, 6, 7, 8], [9, 3]]
TARGET = ModelLatency({1: 8e-3, 16: 10e-3})
DRAFT = ModelLatency({1: 1e-3, 12: 2.2e-3}, call=4e-4)
TOKEN = 2 * 2 * 2 * 8 * 4  # bytes: layers, keys and values, heads, size of a head, float32


def tiny_pair(executor="virtual", **options):
    profile = Profile(TARGET, DRAFT) if executor == "virtual" else None
    models = tiny_model("llama"), tiny_model("llama", seed=1)
    llm = LLM.from_models(*models, executor=executor, profile=profile, padding=None, **options)
    return Pair(llm, llm)


@pytest.fixture(scope="module")
def costs():
    return branch_costs(tiny_pair(), PROMPTS, widths=[12, 4], max_tokens=8, repeats=2)


def test_times_are_those_of_the_profile(costs):
    assert [cost.k for cost in costs] == [1, 4, 12]
    for cost in costs:
        assert cost.step == pytest.approx(DRAFT.seconds(cost.k))
        assert cost.planning == pytest.approx(DRAFT.call)
        assert cost.message == pytest.approx(0, abs=1e-12)
        assert cost.slow_down == pytest.approx(1)


def test_memory_is_that_of_the_steps_beside_a_verification(costs):
    for cost in costs:
        begun = TARGET.seconds(CHAIN + 1) - DRAFT.call  # when the verification ends
        steps = int(begun / DRAFT.seconds(cost.k)) + 1  # the last one is ended, not broken off
        assert cost.kv_bytes == steps * cost.k * TOKEN
        # Both models have the same shape; the texts have 4 and 2 tokens.
        shares = [cost.kv_bytes / (2 * TOKEN * len(prompt)) for prompt in PROMPTS]
        assert min(shares) <= cost.kv_share <= max(shares)
        assert cost.kv_reserved == cost.k * (MOST_GAMMA + 1) * TOKEN
        assert cost.kv_bytes <= cost.kv_reserved


def test_speed_is_held_against_one_branch(costs):
    one, *others = costs
    assert (one.over_one.low, one.over_one.high) == (1, 1)
    for cost in others:  # of two repeats
        assert cost.over_one.low <= cost.over_one.middle <= cost.over_one.high
        fastest = cost.tokens_per_second.high / one.tokens_per_second.low
        slowest = cost.tokens_per_second.low / one.tokens_per_second.high
        assert slowest <= cost.over_one.low
        assert cost.over_one.high <= fastest


def test_one_row_a_width(costs):
    rows = table(costs)
    assert [row[0] for row in rows] == ["1", "4", "12"]
    assert {len(row) for row in rows} == {len(HEADINGS)}
    assert rows[0][1:3] == ["1.00", "400"]
    assert rows[0][-1] == "1.00 (1.00-1.00)"


def test_a_plot(costs, tmp_path):
    file = tmp_path / "costs.svg"
    plot(costs, file)
    assert "net: speed" in file.read_text()  # as a comment: letters are drawn as shapes
    with pytest.raises(InputError, match=r"a plot is \.svg or \.png"):
        plot(costs, tmp_path / "costs.pdf")


@pytest.mark.parametrize("executors", ["inline", "thread"])
def test_on_lanes_of_this_machine(executors):
    pair = tiny_pair(executors)
    [one, three] = branch_costs(pair, PROMPTS, widths=[3], max_tokens=6, repeats=1)
    pair.close()
    for cost in (one, three):
        assert cost.message > 0
        assert cost.slow_down > 0
        assert 0 <= cost.kv_bytes <= cost.kv_reserved
    assert three.kv_reserved == 3 * one.kv_reserved


def test_a_prompt_is_cut_where_a_round_would_not_fit():
    [cost] = branch_costs(tiny_pair(), [[5] * (POSITIONS - 4)], widths=[1], max_tokens=4, repeats=1)
    assert cost.step == pytest.approx(DRAFT.seconds(1))


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="one prompt or more, in one repeat or more"):
        branch_costs(tiny_pair(), [])
    with pytest.raises(InputError, match="the context holds 20 tokens"):
        branch_costs(tiny_pair(max_model_len=20), PROMPTS)
    with pytest.raises(InputError, match="k_max must be 1 or more"):
        branch_costs(tiny_pair(), PROMPTS, widths=[0])
