"""The drafter without any target: texts come, go, are committed and rewound, in any order.

What it drafts must be what its model says after the path, as a fresh forward over it would.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbranch.models.runner import CausalRunner
from specbranch.policy.latency import LatencyLine
from specbranch.sampling_params import SamplingParams
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import Branch, BranchText, CommitUpdate, DraftText, OpenText
from tests.tables import TableRunner, random_table
from tests.tiny import tiny_model

VOCABULARY = 7
GREEDY = SamplingParams(max_tokens=200)


class Oracle:
    """What a model says next, by a fresh forward over the whole path."""

    def next(self, path: list[int]) -> int:
        raise NotImplementedError

    def follow(self, path: list[int], count: int) -> list[int]:
        path = list(path)
        for _ in range(count):
            path.append(self.next(path))
        return path[len(path) - count :]


class TableOracle(Oracle):
    def __init__(self, seed: int) -> None:
        self._table = random_table(seed, VOCABULARY)

    def runner(self) -> TableRunner:
        return TableRunner(self._table, VOCABULARY)

    def next(self, path: list[int]) -> int:
        return int(self._table(tuple(path)).argmax())


class ModelOracle(Oracle):
    def __init__(self, seed: int) -> None:
        self._model = tiny_model("llama", seed=seed)

    def runner(self) -> CausalRunner:
        return CausalRunner(self._model)

    @torch.inference_mode()
    def next(self, path: list[int]) -> int:
        return int(self._model(torch.tensor([path]), use_cache=False).logits[0, -1].argmax())


@dataclass
class Known:
    """A text as the test knows it: committed tokens, the chain, and the branches after it."""

    committed: list[int]
    chain: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    drafted: int = 0

    @property
    def path(self) -> list[int]:
        return self.committed + self.chain


def opening(id: int, prompt: list[int], vocabulary: int) -> OpenText:
    return OpenText(id, prompt, GREEDY, 200, vocabulary, branch_tokens=200)


def run(data: st.DataObject, oracle: TableOracle | ModelOracle, vocabulary: int) -> None:
    """Random work on up to four texts at once, each piece of it checked."""
    drafter = Drafter(oracle.runner())
    texts: dict[int, Known] = {}
    updates: dict[int, CommitUpdate] = {}
    token = st.integers(0, vocabulary - 1)
    for step in range(data.draw(st.integers(3, 12), "steps")):
        action = data.draw(st.sampled_from(["open", "draft", "branch", "commit", "close"]), "do")
        if action == "open":
            if len(texts) >= 4:
                continue
            prompts = data.draw(
                st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=2)
            )
            opened = [
                opening(10 * step + i, prompt, vocabulary) for i, prompt in enumerate(prompts)
            ]
            drafter.open(opened)
            for text in opened:
                texts[text.id] = Known(list(text.prompt))
                updates[text.id] = CommitUpdate(len(text.prompt))
            continue
        if not texts:
            continue
        chosen = data.draw(st.lists(st.sampled_from(sorted(texts)), min_size=1, unique=True))
        if action == "close":
            counts = drafter.close(chosen)
            assert counts == [texts.pop(id).drafted for id in chosen]
            continue
        for id in chosen:
            if texts[id].chain or texts[id].branches:
                updates[id] = resolve(data, texts[id], token)
        if action == "commit":
            drafter.commit([(id, updates[id]) for id in chosen])
        if action == "draft":
            gammas = [data.draw(st.integers(0, 4), "gamma") for _ in chosen]
            drafts = drafter.draft(
                [DraftText(id, updates[id], g) for id, g in zip(chosen, gammas, strict=True)]
            )
            for id, draft, gamma in zip(chosen, drafts, gammas, strict=True):
                known = texts[id]
                known.committed, known.chain = known.path, []
                assert draft.tokens == oracle.follow(known.committed, gamma)
                known.chain, known.drafted = draft.tokens, known.drafted + gamma
        if action == "branch":
            line = data.draw(st.sampled_from([None, LatencyLine(1.0, 0.1)]), "step")
            found = drafter.branch(
                [
                    BranchText(id, updates[id], 20, data.draw(st.integers(0, 3)), 3, "outcomes")
                    for id in chosen
                ],
                line,
            )
            for id, branches in zip(chosen, found, strict=True):
                known = texts[id]
                assert len({branch.outcome for branch in branches}) == len(branches) <= 3
                for branch in branches:
                    start = known.committed + known.chain[: branch.accepted] + [branch.candidate]
                    tokens = branch.continuation.tokens
                    assert tokens == oracle.follow(start, len(tokens))
                known.branches = branches
                known.drafted += sum(map(len, branches))
        for id in chosen:  # everything was applied
            updates[id] = CommitUpdate(len(texts[id].path))


def resolve(data: st.DataObject, known: Known, token: st.SearchStrategy[int]) -> CommitUpdate:
    """A verification's outcome, as a target of its own mind would have it."""
    survives: bool = data.draw(st.booleans(), "survives")
    if known.branches and survives:
        index = data.draw(st.integers(0, len(known.branches) - 1), "survivor")
        branch = known.branches[index]
        kept = data.draw(st.integers(0, len(branch.continuation)), "kept")
        known.committed = known.committed + known.chain[: branch.accepted] + [branch.candidate]
        known.chain, known.branches = branch.continuation.tokens[:kept], []
        return CommitUpdate(len(known.path), survivor=index)
    accepted = data.draw(st.integers(0, len(known.chain)), "accepted")
    valid = known.committed + known.chain[:accepted]
    known.committed, known.chain, known.branches = [*valid, data.draw(token, "target's")], [], []
    return CommitUpdate(len(valid), [known.committed[-1]])


@given(data=st.data(), seed=st.integers(0, 1000))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_order_of_work_gives_what_the_model_says(data: st.DataObject, seed: int) -> None:
    run(data, TableOracle(seed), VOCABULARY)


@given(data=st.data(), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_so_does_a_transformer_whose_forwards_are_batched(data: st.DataObject, seed: int) -> None:
    run(data, ModelOracle(seed), 64)


def test_texts_grow_in_one_forward_a_step() -> None:
    runner = TableOracle(1).runner()
    drafter = Drafter(runner)
    drafter.open([opening(i, [i, 1], VOCABULARY) for i in range(3)])
    drafter.draft([DraftText(i, CommitUpdate(2), gamma=4) for i in range(3)])
    assert runner.forwards == 4
    drafter.branch([BranchText(i, CommitUpdate(6), 20, 2, 3, "outcomes") for i in range(3)])
    assert runner.forwards == 4 + 1 + 2  # the ends of the chains, then two steps of all branches


def test_one_budget_of_branches_goes_to_the_likeliest_outcomes() -> None:
    drafter = Drafter(TableOracle(2).runner())
    drafter.open([opening(i, [i, 3], VOCABULARY) for i in range(3)])
    asked = [BranchText(i, CommitUpdate(2), 20, 1, 4, "outcomes") for i in range(3)]
    found = drafter.branch(asked, budget=5)
    assert sum(map(len, found)) == 5
    assert max(map(len, found)) <= 4


def test_a_text_that_ends_grows_no_further() -> None:
    oracle = TableOracle(3)
    drafter = Drafter(oracle.runner())
    first, second = oracle.follow([0], 2)
    drafter.open([OpenText(1, [0], GREEDY, 100, VOCABULARY, frozenset([second]), 100)])
    [draft] = drafter.draft([DraftText(1, CommitUpdate(1), gamma=5)])
    assert draft.tokens == ([first, second] if first != second else [first])


def test_a_closed_text_is_gone() -> None:
    drafter = Drafter(TableOracle(4).runner())
    drafter.open([opening(1, [0], VOCABULARY)])
    assert drafter.close([1]) == [0]
    with pytest.raises(KeyError):
        drafter.draft([DraftText(1, CommitUpdate(1), gamma=2)])
