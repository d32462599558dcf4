"""Any sequence of a runner's calls, beside the lists of tokens that it should stand for."""

from __future__ import annotations

from hypothesis import strategies as st
from transformers import PreTrainedModel

from specbranch.models.padding import Padding
from specbranch.models.recurrent_runner import runner_of
from tests.forwards import CAPACITY, LONGEST, assert_close, fresh, fresh_ends
from tests.tiny import VOCABULARY

TOKENS = st.integers(0, VOCABULARY - 1)


class Tree:
    """A runner beside the plain lists of tokens that its trunk and branches should stand for."""

    def __init__(self, model: PreTrainedModel, padding: Padding) -> None:
        self.model = model
        self.runner = runner_of(model)
        self.runner.open(0, CAPACITY, padding)
        self.trunk: list[int] = []
        self.branches: dict[int, list[int]] = {}
        self.used = 0

    def act(self, data: st.DataObject) -> None:
        """Do what may be done now: any order of calls can come up, steps of branches often."""
        possible = []
        if self.branches and self.used + len(self.branches) <= CAPACITY:
            possible += [self.step] * 4 + [self.keep]
        if len(self.branches) <= 3:
            possible += [self.fork]
        if len(self.trunk) + LONGEST <= CAPACITY:
            possible += [self.run]
        possible += [self.rewind]
        data.draw(st.sampled_from(possible))(data)
        assert self.runner.length(0) == len(self.trunk)

    def settle(self, trunk: list[int]) -> None:
        self.trunk, self.branches, self.used = trunk, {}, len(trunk)

    def prefill(self, data: st.DataObject) -> None:
        tokens = data.draw(st.lists(TOKENS, max_size=LONGEST))
        self.runner.prefill(0, tokens)
        self.settle(self.trunk + tokens)

    def run(self, data: st.DataObject) -> None:
        tokens = data.draw(st.lists(TOKENS, min_size=1, max_size=LONGEST))
        found = self.runner.run(0, tokens).logits
        self.settle(self.trunk + tokens)
        assert_close(found, fresh(self.model, self.trunk)[-len(tokens) :])

    def rewind(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(max(0, len(self.trunk) - LONGEST), len(self.trunk)))
        self.runner.rewind(0, length)
        self.settle(self.trunk[:length])

    def fork(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from([None, *self.branches]))
        path = self.trunk if branch is None else self.branches[branch]
        positions = data.draw(st.lists(st.integers(0, len(path)), min_size=1, max_size=3))
        ids = self.runner.fork(0, positions, branch)
        assert not set(ids) & set(self.branches)
        self.branches |= {i: path[:position] for i, position in zip(ids, positions, strict=True)}

    def step(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, len(self.branches)))
        chosen = data.draw(st.permutations([*self.branches]))[-count:]
        tokens = {branch: data.draw(TOKENS) for branch in chosen}
        found = self.runner.step(0, tokens)
        self.used += len(tokens)
        for branch, token in tokens.items():
            self.branches[branch] = [*self.branches[branch], token]
        assert_close(found, fresh_ends(self.model, [self.branches[branch] for branch in tokens]))

    def keep(self, data: st.DataObject) -> None:
        branch = data.draw(st.sampled_from([*self.branches]))
        self.runner.keep(0, branch)
        self.settle(self.branches[branch])
