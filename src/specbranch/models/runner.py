"""A causal language model over a cache that forks and rewinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specbranch.models.forward import ModelForward
from specbranch.models.info import CacheSize
from specbranch.models.kv_cache import StaticKVCache
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.segments import Segment, can_run_segments, run_segments
from specbranch.models.sequence_state import BranchState, LookaheadRow, Output, SequenceState

PREFILL_CHUNK = 512
BLOCK = 256  # slots; what aligned forwards attend over is a multiple of it


class CausalRunner(ModelForward):
    """Runs a `transformers` causal LM on sequences whose caches fork, rewind and keep a branch.

    All branches of a sequence share the prefix's keys and values: a step runs one token of each in
    a single row, and a tree attention mask shows every token only its own path.

    Args:
        model: a causal LM in evaluation mode, with `sdpa` or `eager` attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._states: dict[int, SequenceState] = {}

    def open(self, sequence: int, capacity: int, padding: Padding = NATURAL) -> None:
        """Start the empty sequence `sequence` that will hold at most `capacity` tokens at once.

        Args:
            capacity: prefix and branches together; padding and alignment need no allowance.
            padding: of the forwards of `run`.
        """
        if padding.aligned:
            capacity = -(-capacity // BLOCK) * BLOCK
        self._states[sequence] = SequenceState(
            StaticKVCache(self.layers, capacity + padding.least - 1), padding
        )

    def close(self, sequence: int) -> None:
        """Forget the sequence, if there is one, and free its cache."""
        self._states.pop(sequence, None)

    def length(self, sequence: int) -> int:
        """Number of tokens of the prefix."""
        return self._states[sequence].length

    def cache_size(self, sequence: int) -> CacheSize:
        """What the sequence's cache takes; all zero before its first forward."""
        state = self._states[sequence]
        allocated = state.kv_cache.nbytes
        token = allocated // state.kv_cache.capacity
        return CacheSize(token, token * (state.used - state.length), allocated)

    def prefill(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append `tokens` to the prefix without computing their logits."""
        state = self._states[sequence]
        for start in range(0, len(tokens), PREFILL_CHUNK):
            self._run_prefix(state, list(tokens[start : start + PREFILL_CHUNK]), keep=1)

    def run(
        self,
        sequence: int,
        tokens: Sequence[int],
        layers: int = 0,
        lookahead_rows: Sequence[LookaheadRow] = (),
    ) -> Output:
        """Append `tokens` to the prefix, dropping all branches.

        Args:
            tokens: n ≥ 1 token ids.
            layers: K, how many of the last layers' hidden states to return.
            lookahead_rows: run in the same forward, and forgotten. Where it has no room for them
                (a fixed
                padding is full, a block of the cache ends) they are left out, so that a padding
                that
                is bit-exact stays so.
        """
        state = self._states[sequence]
        if lookahead_rows and self._has_room(state, len(tokens), len(lookahead_rows)):
            return self._run_prefix(
                state, list(tokens), state.padding.least, layers, lookahead_rows=lookahead_rows
            )
        parts, left = [], list(tokens)
        while left:
            count = min(len(left), state.padding.most or len(left))
            if state.padding.aligned:
                count = min(count, BLOCK - state.length % BLOCK)
            parts.append(self._run_prefix(state, left[:count], state.padding.least, layers))
            del left[:count]
        if len(parts) == 1:
            return parts[0]
        hidden = [part.hidden for part in parts if part.hidden is not None]
        logits = torch.cat([part.logits for part in parts])
        return Output(logits, torch.cat(hidden, 1) if hidden else None)

    def run_many(self, batch: Sequence[tuple[int, Sequence[int]]]) -> list[Tensor]:
        """Append tokens to the prefixes of several sequences, in one forward if the model allows.

        The padding of the sequences does not count.

        Args:
            batch: sequence and n ≥ 1 token ids.

        Returns:
            Logits, float32 ``[n, vocabulary]``, for each sequence.
        """
        if len(batch) == 1 or not self._shares_forwards:
            return [self.run(sequence, tokens).logits for sequence, tokens in batch]
        segments = []
        for sequence, tokens in batch:
            state = self._states[sequence]
            state.branches.clear()
            start, end = state.length, state.length + len(tokens)
            state.length = state.used = end
            places = list(range(start, end))
            seen = torch.from_numpy(np.arange(end) <= np.arange(start, end)[:, None])
            segments.append(Segment(state.kv_cache, list(tokens), places, places, seen))
        return run_segments(self.model, segments, self.windows)

    def step_many(self, batch: Sequence[tuple[int, Mapping[int, int]]]) -> list[Tensor]:
        """Append a token to branches of several sequences, in one forward if the model allows.

        Args:
            batch: sequence, and token id by branch id.

        Returns:
            Logits, float32 ``[n, vocabulary]``, for each sequence.
        """
        if len(batch) == 1 or not self._shares_forwards:
            return [self.step(sequence, tokens) for sequence, tokens in batch]
        segments = [self._step_segment(sequence, tokens) for sequence, tokens in batch]
        return run_segments(self.model, segments, self.windows)

    @property
    def _shares_forwards(self) -> bool:
        """Whether several sequences run in one forward.

        A compiled forward takes one sequence, and one after another is faster than all at once
        without it.
        """
        return self._compiled is None and can_run_segments(self.model)

    def rewind(self, sequence: int, length: int) -> None:
        """Forget the prefix's tokens after the first `length`, and all branches."""
        state = self._states[sequence]
        if not 0 <= length <= state.length:
            raise ValueError(f"cannot rewind to {length}: the prefix has {state.length} tokens")
        state.length = state.used = length
        state.branches.clear()

    def fork(self, sequence: int, positions: Sequence[int], branch: int | None = None) -> list[int]:
        """Start one branch at each of `positions`: it shares that many tokens of the path.

        Args:
            branch: fork this branch's path instead of the prefix.

        Returns:
            Ids of the new branches, valid until a `run`, `rewind` or `keep`.
        """
        state = self._states[sequence]
        parent = state.branches[branch] if branch is not None else BranchState(state.length)
        forked = []
        for position in positions:
            if not 0 <= position <= parent.length:
                raise ValueError(f"cannot fork at {position}: the path has {parent.length} tokens")
            own = parent.slots[: max(0, position - parent.fork)]
            state.branches[state.next_branch] = BranchState(min(position, parent.fork), own)
            forked.append(state.next_branch)
            state.next_branch += 1
        return forked

    def step(self, sequence: int, tokens: Mapping[int, int]) -> Tensor:
        """Append one token to each of several branches in one forward.

        Args:
            tokens: token id by branch id, n ≥ 1 of them.

        Returns:
            Logits, float32 ``[n, vocabulary]``, in the order of `tokens`.
        """
        step = self._step_segment(sequence, tokens)
        return self._forward(step.cache, step.tokens, step.slots, step.positions, step.mask).logits

    def _step_segment(self, sequence: int, tokens: Mapping[int, int]) -> Segment:
        """Give each branch a slot for its token; what a forward needs of them."""
        state = self._states[sequence]
        branches = [state.branches[b] for b in tokens]
        slots = list(range(state.used, state.used + len(branches)))
        state.used += len(branches)
        for branch, slot in zip(branches, slots, strict=True):
            branch.slots.append(slot)
        mask = np.arange(state.used) < np.array([[branch.fork] for branch in branches])
        rows = [row for row, branch in enumerate(branches) for _ in branch.slots]
        mask[rows, [slot for branch in branches for slot in branch.slots]] = True
        positions = [branch.length - 1 for branch in branches]
        seen = torch.from_numpy(mask)
        return Segment(state.kv_cache, list(tokens.values()), slots, positions, seen)

    @torch.inference_mode()
    def keep(self, sequence: int, branch: int) -> None:
        """Make the branch's path the prefix and drop all branches; nothing is recomputed."""
        state = self._states[sequence]
        kept = state.branches[branch]
        if kept.slots:
            destination = torch.arange(kept.fork, kept.length)
            state.kv_cache.move(torch.tensor(kept.slots), destination)
        state.length = state.used = kept.length
        state.branches.clear()

    @staticmethod
    def _has_room(state: SequenceState, tokens: int, lookahead_rows: int) -> bool:
        """Whether a forward of so many tokens takes so many lookahead_rows."""
        padding, end = state.padding, state.length + tokens
        if padding.most is not None and tokens + lookahead_rows > padding.most:
            return False
        if not padding.aligned:
            return end + lookahead_rows <= state.kv_cache.capacity
        return state.length // BLOCK == (end + lookahead_rows - 1) // BLOCK

    def _run_prefix(
        self,
        state: SequenceState,
        tokens: list[int],
        least: int = 1,
        layers: int = 0,
        keep: int = 0,
        lookahead_rows: Sequence[LookaheadRow] = (),
    ) -> Output:
        state.branches.clear()
        start, count = state.length, len(tokens)
        state.length = state.used = start + count
        total = count + len(lookahead_rows)
        rows = max(total, least)
        extent = -(-state.length // BLOCK) * BLOCK if state.padding.aligned else start + rows
        # In numpy: torch takes longer to make and index small ones.
        mask = np.arange(extent) <= np.arange(start, start + rows)[:, None]
        slots = list(range(start, start + rows))
        positions = list(slots)
        for row, lookahead in enumerate(lookahead_rows, start=count):
            mask[row, start + 1 :] = False
            mask[row, [start + count + i for i in lookahead.sees] + [slots[row]]] = True
            positions[row] = lookahead.position
        # Padding rows are computed and thrown away: their positions only have to exist.
        positions = [min(p, self.positions - 1) for p in positions]
        padded = (
            tokens
            + [lookahead.token for lookahead in lookahead_rows]
            + [tokens[-1]] * (rows - total)
        )
        seen = torch.from_numpy(mask)
        # Prompts are read in the same chunks by every method: their rounding cannot differ.
        exact = state.padding.aligned and not keep
        out = self._forward(state.kv_cache, padded, slots, positions, seen, layers, keep, exact)
        if rows == count:
            return out
        hidden = out.hidden[:, :count] if out.hidden is not None else None
        return Output(
            out.logits[:count], hidden, out.logits[count:total] if lookahead_rows else None
        )
