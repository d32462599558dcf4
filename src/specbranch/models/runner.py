"""A causal language model over a cache that forks and rewinds."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specbranch.models.cpu.compiled import (
    MOST_ROWS,
    CompiledForward,
    compile_forward,
    library_name,
    obstacle,
)
from specbranch.models.cpu.prepacking import pack
from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.kv_cache import StaticKVCache
from specbranch.models.padding import NATURAL, Padding

logger = logging.getLogger("specbranch")

PREFILL_CHUNK = 512
BLOCK = 256  # slots; what aligned forwards attend over is a multiple of it


@dataclass
class Branch:
    """A path that leaves the trunk after `fork` tokens and goes on through its own `slots`."""

    fork: int
    slots: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.fork + len(self.slots)


@dataclass
class State:
    """One sequence: a trunk in slots ``0 … length − 1``, and branches in the slots after it."""

    kv_cache: StaticKVCache
    padding: Padding
    length: int = 0
    used: int = 0
    branches: dict[int, Branch] = field(default_factory=dict)
    next_branch: int = 0


@dataclass(frozen=True)
class LookaheadRow:
    """A token that is run beside those that are appended to the trunk, for its logits alone.

    It sees the trunk up to the first appended token, some lookahead_rows, and itself.

    Attributes:
        position: in the text.
        sees: which of the lookahead_rows before it.
    """

    token: int
    position: int
    sees: list[int]


@dataclass(frozen=True)
class Output:
    """What a forward gives for its ``n`` new tokens.

    Attributes:
        logits: float32 ``[n, vocabulary]``.
        hidden: states of the last K layers, ``[K, n, hidden_size]``, in the model's dtype; None
            unless asked for.
        lookahead_rows: logits of the m lookahead_rows, float32 ``[m, vocabulary]``; None if there
            were none, or
            no room for them.
    """

    logits: Tensor
    hidden: Tensor | None = None
    lookahead_rows: Tensor | None = None


class CausalRunner:
    """Runs a `transformers` causal LM on sequences whose caches fork, rewind and keep a branch.

    All branches of a sequence share the trunk's keys and values: a step runs one token of each in
    a single row, and a tree attention mask shows every token only its own path.

    Args:
        model: a causal LM in evaluation mode, with `sdpa` or `eager` attention.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device: torch.device = model.device
        config = model.config.get_text_config()
        self.layers: int = config.num_hidden_layers
        self.positions: int = config.max_position_embeddings
        self.vocabulary: int = config.vocab_size
        self.parameters: int = model.num_parameters()
        self.invariant_from: int | None = None
        self.any_threads = True
        self._additive = config._attn_implementation == "eager"
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._compiled: CompiledForward | None = None
        self._quantization: str | None = None
        self._states: dict[int, State] = {}

    def pack(self, int8: bool = False) -> None:
        """Change the model for faster forwards, if it is on a CPU (see `packing`)."""
        pack(self.model, int8=int8)
        self._quantization = "int8" if int8 else None

    def compile(self, name: str, verifies: bool, int8: bool = False) -> None:
        """Pack the model, and compile its short forwards, where that can be done.

        Args:
            name: of the model, for people.
            verifies: the model is a target: its hidden states will be asked for, and its logits
                are to be the same however many tokens are run with them.
            int8: quantize its linear layers.
        """
        self._quantization = "int8" if int8 else None
        reason = obstacle(self.model)
        if reason is not None:
            logger.info("%s runs uncompiled: %s", name, reason)
            pack(self.model, verifies, int8)
            return
        library = library_name(self.model, int8)
        pack(self.model, verifies, int8)
        self._compiled = compile_forward(self.model, name, library, verifies)

    def describe(self, name: str) -> ModelInfo:
        """What the model, called `name` by the user, is."""
        config = self.model.config.get_text_config()
        generation = self.model.generation_config
        eos = generation.eos_token_id if generation is not None else None
        return ModelInfo(
            name,
            config.model_type,
            self.parameters,
            self.layers,
            config.hidden_size,
            str(self.model.dtype).removeprefix("torch."),
            str(self.device),
            self.vocabulary,
            self.positions,
            frozenset([] if eos is None else eos if isinstance(eos, list) else [eos]),
            self.invariant_from,
            self.any_threads,
            self._fingerprint(),
            self._compiled is not None,
            self._quantization,
        )

    def _fingerprint(self) -> str:
        # In bfloat16, which is what models are stored in: so it does not depend on the dtype here.
        sample = self.embeddings(range(min(64, self.vocabulary))).to(torch.bfloat16)
        return sha256(sample.view(torch.int16).cpu().numpy().tobytes()).hexdigest()[:16]

    def open(self, sequence: int, capacity: int, padding: Padding = NATURAL) -> None:
        """Start the empty sequence `sequence` that will hold at most `capacity` tokens at once.

        Args:
            capacity: trunk and branches together; padding and alignment need no allowance.
            padding: of the forwards of `run`.
        """
        if padding.aligned:
            capacity = -(-capacity // BLOCK) * BLOCK
        self._states[sequence] = State(
            StaticKVCache(self.layers, capacity + padding.least - 1), padding
        )

    def close(self, sequence: int) -> None:
        """Forget the sequence, if there is one, and free its cache."""
        self._states.pop(sequence, None)

    @torch.inference_mode()
    def embeddings(self, tokens: Sequence[int]) -> Tensor:
        """Input embeddings of n tokens, ``[n, hidden_size]``, in the model's dtype."""
        table = self.model.get_input_embeddings()
        found: Tensor = table(torch.tensor(tokens, device=table.weight.device))
        return found.to(self.device)

    def length(self, sequence: int) -> int:
        """Number of tokens of the trunk."""
        return self._states[sequence].length

    def cache_size(self, sequence: int) -> CacheSize:
        """What the sequence's cache takes; all zero before its first forward."""
        state = self._states[sequence]
        allocated = state.kv_cache.nbytes
        token = allocated // state.kv_cache.capacity
        return CacheSize(token, token * (state.used - state.length), allocated)

    def prefill(self, sequence: int, tokens: Sequence[int]) -> None:
        """Append `tokens` to the trunk without computing their logits."""
        state = self._states[sequence]
        for start in range(0, len(tokens), PREFILL_CHUNK):
            self._run_trunk(state, list(tokens[start : start + PREFILL_CHUNK]), keep=1)

    def run(
        self,
        sequence: int,
        tokens: Sequence[int],
        layers: int = 0,
        lookahead_rows: Sequence[LookaheadRow] = (),
    ) -> Output:
        """Append `tokens` to the trunk, dropping all branches.

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
            return self._run_trunk(
                state, list(tokens), state.padding.least, layers, lookahead_rows=lookahead_rows
            )
        parts, left = [], list(tokens)
        while left:
            count = min(len(left), state.padding.most or len(left))
            if state.padding.aligned:
                count = min(count, BLOCK - state.length % BLOCK)
            parts.append(self._run_trunk(state, left[:count], state.padding.least, layers))
            del left[:count]
        if len(parts) == 1:
            return parts[0]
        hidden = [part.hidden for part in parts if part.hidden is not None]
        logits = torch.cat([part.logits for part in parts])
        return Output(logits, torch.cat(hidden, 1) if hidden else None)

    def rewind(self, sequence: int, length: int) -> None:
        """Forget the trunk's tokens after the first `length`, and all branches."""
        state = self._states[sequence]
        if not 0 <= length <= state.length:
            raise ValueError(f"cannot rewind to {length}: the trunk has {state.length} tokens")
        state.length = state.used = length
        state.branches.clear()

    def fork(self, sequence: int, positions: Sequence[int], branch: int | None = None) -> list[int]:
        """Start one branch at each of `positions`: it shares that many tokens of the path.

        Args:
            branch: fork this branch's path instead of the trunk.

        Returns:
            Ids of the new branches, valid until a `run`, `rewind` or `keep`.
        """
        state = self._states[sequence]
        parent = state.branches[branch] if branch is not None else Branch(state.length)
        forked = []
        for position in positions:
            if not 0 <= position <= parent.length:
                raise ValueError(f"cannot fork at {position}: the path has {parent.length} tokens")
            own = parent.slots[: max(0, position - parent.fork)]
            state.branches[state.next_branch] = Branch(min(position, parent.fork), own)
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
        return self._forward(state.kv_cache, list(tokens.values()), slots, positions, seen).logits

    @torch.inference_mode()
    def keep(self, sequence: int, branch: int) -> None:
        """Make the branch's path the trunk and drop all branches; nothing is recomputed."""
        state = self._states[sequence]
        kept = state.branches[branch]
        if kept.slots:
            destination = torch.arange(kept.fork, kept.length)
            state.kv_cache.move(torch.tensor(kept.slots), destination)
        state.length = state.used = kept.length
        state.branches.clear()

    @staticmethod
    def _has_room(state: State, tokens: int, lookahead_rows: int) -> bool:
        """Whether a forward of so many tokens takes so many lookahead_rows."""
        padding, end = state.padding, state.length + tokens
        if padding.most is not None and tokens + lookahead_rows > padding.most:
            return False
        if not padding.aligned:
            return end + lookahead_rows <= state.kv_cache.capacity
        return state.length // BLOCK == (end + lookahead_rows - 1) // BLOCK

    def _run_trunk(
        self,
        state: State,
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
        out = self._forward(state.kv_cache, padded, slots, positions, seen, layers, keep)
        if rows == count:
            return out
        hidden = out.hidden[:, :count] if out.hidden is not None else None
        return Output(
            out.logits[:count], hidden, out.logits[count:total] if lookahead_rows else None
        )

    @torch.inference_mode()
    def _forward(
        self,
        kv_cache: StaticKVCache,
        tokens: list[int],
        slots: list[int],
        positions: list[int],
        mask: Tensor,
        layers: int = 0,
        keep: int = 0,
    ) -> Output:
        """One forward; `mask` is bool ``[tokens, extent]``, True where a token sees a slot."""
        if self._compiled is not None and len(tokens) <= MOST_ROWS:
            logits, states = self._compiled(kv_cache, tokens, slots, positions, mask)
            return Output(logits, torch.stack(states[-layers:]) if layers else None)
        kv_cache.slots = torch.tensor(slots, device=self.device)
        kv_cache.extent = mask.shape[1]
        if self._additive:
            low = torch.finfo(self.model.dtype).min
            mask = torch.where(mask, 0.0, low).to(self.model.dtype)
        options = {"logits_to_keep": keep} if self._keeps_logits else {}
        out = self.model(
            input_ids=torch.tensor([tokens], device=self.device),
            attention_mask=mask[None, None].to(self.device),
            position_ids=torch.tensor([positions], device=self.device),
            past_key_values=kv_cache,
            use_cache=True,
            output_hidden_states=layers > 0,
            **options,
        )
        hidden = torch.stack([h[0] for h in out.hidden_states[-layers:]]) if layers else None
        return Output(out.logits[0].float(), hidden)
