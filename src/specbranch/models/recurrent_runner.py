"""A runner of models with recurrent or convolutional layers, beside attention or alone.

Keys and values are kept and shared as in `CausalRunner`. A state is kept at the end of each of the
latest forwards. After a rejection the newest one of the tokens that stay is restored, and the
accepted tokens after it are run again as further rows of the next forward: none is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specbranch.models.layer_states import STATES, Snapshot, StatefulCache, has_states
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import PREFILL_CHUNK, CausalRunner
from specbranch.models.sequence_state import BranchState, LookaheadRow, Output, SequenceState
from specbranch.models.windows import FULL, SIZES

# More tokens than that are run again in a forward of their own, which keeps a state at their end.
MOST_REPLAYED = 16
# Tokens before the newest one whose states are kept: a drafted chain, which branches fork from.
KEPT = 20


@dataclass
class RecurrentBranch(BranchState):
    """A path with states.

    Attributes:
        tokens: of its own slots.
        snapshot: after its last token; None where it has to be found.
    """

    tokens: list[int] = field(default_factory=list)
    snapshot: Snapshot | None = None


@dataclass
class RecurrentState(SequenceState):
    """A sequence with states.

    Attributes:
        tokens: of the prefix.
        snapshots: by the number of tokens of the prefix after which they are.
    """

    kv_cache: StatefulCache
    tokens: list[int] = field(default_factory=list)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


def runner_of(model: PreTrainedModel) -> CausalRunner:
    """The runner that the model needs."""
    return RecurrentRunner(model) if has_states(model.config) else CausalRunner(model)


class RecurrentRunner(CausalRunner):
    """As `CausalRunner`; branches that grow together are rows of a batch, with a state each.

    Forwards have their natural length: a state would take in padding. So logits depend on how a
    text is cut, by rounding.

    Args:
        model: a causal LM in evaluation mode, with `sdpa` or `eager` attention.
    """

    keeps_states = True
    _states: dict[int, RecurrentState]  # type: ignore[assignment]

    @property
    def _shares_forwards(self) -> bool:
        return False

    def open(self, sequence: int, capacity: int, padding: Padding = NATURAL) -> None:
        cache = StatefulCache(self.windows.kinds, capacity)
        self._states[sequence] = RecurrentState(cache, padding)

    def prefill(self, sequence: int, tokens: Sequence[int]) -> None:
        state = self._states[sequence]
        for start in range(0, len(tokens), PREFILL_CHUNK):
            self._append(state, list(tokens[start : start + PREFILL_CHUNK]), keep=1)

    def run(
        self,
        sequence: int,
        tokens: Sequence[int],
        layers: int = 0,
        lookahead_rows: Sequence[LookaheadRow] = (),
    ) -> Output:
        """As `CausalRunner.run`; there is never room for lookahead rows, which are no path."""
        return self._append(self._states[sequence], list(tokens), layers)

    def rewind(self, sequence: int, length: int) -> None:
        super().rewind(sequence, length)
        state = self._states[sequence]
        del state.tokens[length:]
        state.snapshots = {at: kept for at, kept in state.snapshots.items() if at <= length}

    def fork(self, sequence: int, positions: Sequence[int], branch: int | None = None) -> list[int]:
        state = self._states[sequence]
        ids = super().fork(sequence, positions, branch)
        parent = _of(state, branch) if branch is not None else None
        for id in ids:
            forked = state.branches[id]
            own = RecurrentBranch(forked.fork, forked.slots)
            if parent is not None:
                own.tokens = parent.tokens[: len(own.slots)]
                if own.length == parent.length:
                    own.snapshot = parent.snapshot
            if not own.slots:
                own.snapshot = own.snapshot or state.snapshots.get(own.fork)
            state.branches[id] = own
        return ids

    def step(self, sequence: int, tokens: Mapping[int, int]) -> Tensor:
        state = self._states[sequence]
        growing = [_of(state, id) for id in tokens]
        for branch in growing:
            if branch.snapshot is None:
                self._find_state(state, branch)
        step = self._step_segment(sequence, tokens)
        # A path without tokens has no state, and cannot stand beside one that has.
        with_state = [i for i, branch in enumerate(growing) if branch.snapshot is not None]
        groups = [with_state, *([i] for i, branch in enumerate(growing) if branch.snapshot is None)]
        logits: dict[int, Tensor] = {}
        for group in filter(None, groups):
            out = self._forward_paths(
                step.cache,
                [growing[i].snapshot for i in group],
                [[step.tokens[i]] for i in group],
                [step.slots[i] for i in group],
                [[step.positions[i]] for i in group],
                torch.stack([step.mask[i : i + 1] for i in group]),
            )
            kept = step.cache.snapshots(len(group))
            for i, row, snapshot in zip(group, out.logits, kept, strict=True):
                logits[i], growing[i].snapshot = row[-1], snapshot
        for branch, token in zip(growing, tokens.values(), strict=True):
            branch.tokens.append(token)
        return torch.stack([logits[i] for i in range(len(growing))])

    def keep(self, sequence: int, branch: int) -> None:
        state = self._states[sequence]
        kept = _of(state, branch)
        super().keep(sequence, branch)
        del state.tokens[kept.fork :]
        state.tokens += kept.tokens
        state.snapshots = {at: s for at, s in state.snapshots.items() if at <= kept.fork}
        if kept.snapshot is not None:
            state.snapshots[kept.length] = kept.snapshot

    def _append(
        self, state: RecurrentState, tokens: list[int], layers: int = 0, keep: int = 0
    ) -> Output:
        """Append tokens to the prefix, after those that have to be run again."""
        state.branches.clear()
        start, snapshot = _newest(state, state.length)
        places = list(range(state.length + len(tokens)))
        if state.length - start > MOST_REPLAYED:
            snapshot = self._replay(state, start, snapshot, state.tokens, places)
            start = state.length
            assert snapshot is not None
            state.snapshots[start] = snapshot
        run = state.tokens[start:] + tokens
        state.tokens += tokens
        state.length = state.used = len(state.tokens)
        out = self._run_path(state, snapshot, start, run, places, layers, keep)
        [state.snapshots[state.length]] = state.kv_cache.snapshots(1)
        oldest, _ = _newest(state, max(0, state.length - KEPT))
        state.snapshots = {at: s for at, s in state.snapshots.items() if at >= oldest}
        hidden = out.hidden[:, -len(tokens) :] if out.hidden is not None else None
        return Output(out.logits[-len(tokens) :], hidden)

    def _find_state(self, state: RecurrentState, branch: RecurrentBranch) -> None:
        """Run what a branch has read again, from the newest state of its path."""
        start, snapshot = _newest(state, branch.fork)
        tokens = state.tokens[: branch.fork] + branch.tokens
        places = [*range(branch.fork), *branch.slots]
        branch.snapshot = self._replay(state, start, snapshot, tokens, places)

    def _replay(
        self,
        state: RecurrentState,
        start: int,
        snapshot: Snapshot | None,
        tokens: list[int],
        places: list[int],
    ) -> Snapshot | None:
        """The states after a path's tokens, from those after the first `start`."""
        for at in range(start, len(tokens), PREFILL_CHUNK):
            part = tokens[at : at + PREFILL_CHUNK]
            self._run_path(state, snapshot, at, part, places, keep=1)
            [snapshot] = state.kv_cache.snapshots(1)
        return snapshot

    def _run_path(
        self,
        state: RecurrentState,
        snapshot: Snapshot | None,
        start: int,
        tokens: list[int],
        places: list[int],
        layers: int = 0,
        keep: int = 0,
    ) -> Output:
        """Run the tokens of a path at positions from `start`, whose slots are its `places`."""
        end = start + len(tokens)
        position = np.full(max(places[:end]) + 1, end)
        position[places[:end]] = np.arange(end)
        seen = torch.from_numpy(position <= np.arange(start, end)[:, None])
        positions = list(range(start, end))
        out = self._forward_paths(
            state.kv_cache,
            [snapshot],
            [tokens],
            places[start:end],
            [positions],
            seen[None],
            layers,
            keep,
        )
        return Output(out.logits[0], out.hidden)

    @torch.inference_mode()
    def _forward_paths(
        self,
        cache: StatefulCache,
        snapshots: Sequence[Snapshot | None],
        tokens: list[list[int]],
        slots: list[int],
        positions: list[list[int]],
        mask: Tensor,
        layers: int = 0,
        keep: int = 0,
    ) -> Output:
        """One forward of paths side by side, with a state each; `mask` is ``[paths, n, extent]``.

        Returns:
            Logits ``[paths, n, vocabulary]``, and the hidden states of the first path.
        """
        cache.restore([snapshot for snapshot in snapshots if snapshot is not None])
        cache.extent = mask.shape[-1]
        masks: dict[str, Tensor | None] = dict.fromkeys(STATES)
        for kind in (FULL, *SIZES):
            masks[kind] = self._as_taken(self.windows.narrowed(mask[:, None], kind))
        attends = not set(STATES).issuperset(self.windows.kinds)
        out = self._call(cache, tokens, slots, positions, masks if attends else None, layers, keep)
        hidden = torch.stack([h[0] for h in out.hidden_states[-layers:]]) if layers else None
        return Output(out.logits.float(), hidden)


def _of(state: RecurrentState, id: int) -> RecurrentBranch:
    branch = state.branches[id]
    assert isinstance(branch, RecurrentBranch)
    return branch


def _newest(state: RecurrentState, length: int) -> tuple[int, Snapshot | None]:
    """The newest states of the prefix's first `length` tokens; none after no token."""
    at = max((at for at in state.snapshots if at <= length), default=0)
    return at, state.snapshots.get(at)
