"""The draft executor's worker: drafts chains, and branches while the target verifies."""

from __future__ import annotations

import torch
from torch import Tensor

from specbranch.executors.base import Worker
from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.runner import CausalRunner
from specbranch.policy.acceptance import Calibration
from specbranch.policy.branching import (
    DraftLengthPolicy,
    Outcome,
    branch_count,
    candidates,
    confidence,
    outcomes,
)
from specbranch.policy.latency import best_width
from specbranch.policy.ngram import Match, NgramIndex
from specbranch.policy.signal import Signal
from specbranch.sampling.processors import warp
from specbranch.sampling.samplers import DRAFT, make_sampler
from specbranch.workers.draft_tree import Drafted, Path, Text
from specbranch.workers.messages import Branch, BranchPlan, Chain, CommitUpdate, Opening


class DraftWorker(Worker):
    """Holds the draft, and a tree of what it drafted.

    Args:
        runner: the draft model.
        name: of the model.
    """

    def __init__(self, runner: CausalRunner, name: str = "draft") -> None:
        self._runner = runner
        self._name = name
        self._texts: dict[int, Text] = {}
        self._drafted: dict[int, int] = {}
        self._calibration = Calibration()
        self._retrieval = Calibration(least=0.0)

    def describe(self) -> ModelInfo:
        """What the model is."""
        return self._runner.describe(self._name)

    def cache_size(self, sequence: int) -> CacheSize:
        """What the sequence's keys and values take."""
        return self._runner.cache_size(sequence)

    def reset(self) -> None:
        """Forget how acceptance followed confidence so far."""
        self._calibration = Calibration()
        self._retrieval = Calibration(least=0.0)

    def open(self, sequence: int, opening: Opening) -> None:
        """Read the prompt, all but its last token, into the cache."""
        params = opening.params
        self._runner.open(sequence, opening.capacity + opening.branch_tokens)
        self._texts[sequence] = Text(
            list(opening.prompt),
            params,
            make_sampler(params),
            params.processors(),
            opening.stop_ids,
            opening.vocabulary,
            Drafted(len(opening.prompt)),
            NgramIndex(opening.prompt, self._retrieval),
        )
        self._drafted[sequence] = 0
        if read := opening.prompt[:-1]:
            self._runner.prefill(sequence, self._read(read))
            self.meter(len(read))

    def close(self, sequence: int) -> int:
        """Forget the sequence, however far it was opened; returns how many tokens it drafted."""
        self._runner.close(sequence)
        self._texts.pop(sequence, None)
        return self._drafted.pop(sequence, 0)

    def draft(
        self,
        sequence: int,
        resolution: CommitUpdate,
        gamma: int,
        rule: DraftLengthPolicy,
        retrieval: int = 0,
    ) -> Chain:
        """Draft stage: a chain of at most `gamma` tokens, as far as the rule would keep it.

        Args:
            retrieval: most tokens to take from earlier in the text instead, which is at once.
        """
        text = self._texts[sequence]
        self._resolve(sequence, text, resolution)
        chain = text.chain = Drafted(len(text.tokens))
        if retrieval > 0 and (match := self._look_up(text, [], retrieval)):
            chain.retrieved, chain.confidences = True, match.strengths
            text.tokens += match.tokens
            self._drafted[sequence] += len(match.tokens)
            return self._chain(text, match.tokens, match.strengths, [], retrieved=True)
        for _ in range(gamma):
            logits = self._next_logits(sequence, text)
            log_q = self._warp(text, logits[None], [text.tokens])
            places, row = [len(text.tokens)], log_q[0]
            confidences = chain.confidences + self._confidence(text, logits[None], log_q, places)
            acceptance = self._acceptance(rule.signal, confidences)
            if rule.kept(acceptance) < len(confidences):
                break
            if chain.log_q and rule.ends_before(row):
                break
            [token] = self._choose(text, log_q, places)
            chain.confidences = confidences
            chain.log_q.append(row)
            text.tokens.append(token)
            going_on = rule.goes_on(acceptance, self._calibration.mean)
            if token in text.stop_ids or not going_on:
                break
        self._drafted[sequence] += len(chain.confidences)
        return self._chain(text, text.tokens[chain.start :], chain.confidences, chain.log_q)

    def branch(self, sequence: int, resolution: CommitUpdate, plan: BranchPlan) -> list[Branch]:
        """Branch stage: prepare for outcomes of the chain's verification, and go on from each.

        Branches grow together, one batched forward a step, over the one cache of the text they
        share. A branch stops growing at the plan's length, at the first position that is likelier
        to be rejected than its ε allows, or at a token that ends the text; all stop when the
        executor
        is told to. One that the text itself knows how to continue does not grow.
        """
        text = self._texts[sequence]
        self._resolve(sequence, text, resolution)
        planned = self._plan(sequence, text, plan)
        start = text.chain.start
        ids = self._runner.fork(sequence, [start + outcome.accepted for outcome in planned])
        text.branches = [
            Path(i, start + o.accepted, o.accepted, o.probability, [o.token])
            for i, o in zip(ids, planned, strict=True)
        ]
        growing = [
            path
            for path in text.branches
            if path.tokens[0] not in text.stop_ids and path.accepted + 1 < plan.room
        ]
        if plan.retrieval > 0:
            growing = [path for path in growing if not self._continue(text, path, plan)]
        for _ in range(plan.gamma):
            if not growing or self.stopped():
                break
            count = len(growing)
            if plan.step is not None:
                growing.sort(key=lambda path: -path.reach)
                count = best_width([path.reach for path in growing], plan.step)
            grown = self._grow(sequence, text, growing[:count], plan)
            growing = growing[count:] + [
                path for path in grown if path.accepted + len(path.tokens) < plan.room
            ]
        self._drafted[sequence] += sum(len(path.tokens) for path in text.branches)
        return [
            Branch(
                path.accepted,
                path.tokens[0],
                self._chain(text, path.tokens[1:], path.confidences, path.log_q, path.retrieved),
            )
            for path in text.branches
        ]

    def _look_up(self, text: Text, more: list[int], most: int) -> Match | None:
        """What the text repeats, if that is as likely to be accepted as what the draft says.

        Args:
            more: tokens after the committed text.
        """
        text.retrieval.learn(text.tokens[text.retrieval.length : text.chain.start])
        return text.retrieval.continuation(more, most, self._calibration.mean, text.stop_ids)

    def _continue(self, text: Text, path: Path, plan: BranchPlan) -> bool:
        """Continue a branch by what the text repeats; whether there was something."""
        more = text.tokens[text.chain.start : path.fork] + path.tokens
        match = self._look_up(text, more, min(plan.retrieval, plan.room - path.accepted - 1))
        if match is None:
            return False
        path.tokens += match.tokens
        path.confidences = match.strengths
        path.retrieved = True
        return True

    def _grow(self, sequence: int, text: Text, paths: list[Path], plan: BranchPlan) -> list[Path]:
        """One step of these branches; returns those that may go on."""
        last = self._read([path.tokens[-1] for path in paths])
        ids = [path.id for path in paths]
        rows = self._runner.step(sequence, dict(zip(ids, last, strict=True)))
        self.meter(len(ids))
        after = self._fit(text, rows)
        places = [path.fork + len(path.tokens) for path in paths]
        contexts = [text.tokens[: p.fork] + p.tokens for p in paths] if text.processors else []
        log_q = self._warp(text, after, contexts)
        values = self._confidence(text, after, log_q, places)
        chosen = self._choose(text, log_q, places)
        still = []
        for i, (path, value, token) in enumerate(zip(paths, values, chosen, strict=True)):
            path.logits.append(after[i])
            place = path.accepted + len(path.tokens)
            [acceptance] = self._acceptance(plan.signal, [value], place)
            if acceptance < plan.epsilon:
                continue
            path.tokens.append(token)
            path.confidences.append(value)
            path.log_q.append(log_q[i])
            path.reach *= acceptance
            if token not in text.stop_ids:
                still.append(path)
        return still

    def _resolve(self, sequence: int, text: Text, resolution: CommitUpdate) -> None:
        """Make the valid path the trunk: keep the survivor, rewind, append what was committed."""
        if resolution.survivor is not None:
            path = text.branches[resolution.survivor]
            self._learn(text.chain, path.accepted)
            self._runner.keep(sequence, path.id)
            del text.tokens[path.fork :]
            # Those of the old chain, which may have been longer, are of another text.
            text.logits = {path.fork + 1 + i: logits for i, logits in enumerate(path.logits)}
            text.tokens += path.tokens
            text.chain = Drafted(path.fork + 1, path.retrieved, path.confidences, path.log_q)
        elif resolution.tokens:
            self._learn(text.chain, resolution.length - text.chain.start)
        text.branches = []
        text.chain.cut(resolution.length)
        del text.tokens[resolution.length :]
        self._runner.rewind(sequence, min(resolution.length, self._runner.length(sequence)))
        text.logits = {n: row for n, row in text.logits.items() if n == resolution.length}
        text.tokens += resolution.tokens
        if resolution.tokens:  # the old chain ends before them
            text.chain = Drafted(len(text.tokens))

    def _learn(self, chain: Drafted, accepted: int) -> None:
        """Take in how far a chain was accepted: what follows a rejected token was not tested."""
        if chain.retrieved:
            return
        for i, value in enumerate(chain.confidences[: accepted + 1]):
            self._calibration.observe(value, i < accepted)

    def _plan(self, sequence: int, text: Text, plan: BranchPlan) -> list[Outcome]:
        """Outcomes to prepare for."""
        chain, start = text.chain, text.chain.start
        drafted = text.tokens[start:]
        ends = bool(drafted) and drafted[-1] in text.stop_ids
        at_point = plan.branching == "point"
        if at_point and (ends or len(drafted) >= plan.room):
            return []
        if plan.room < 1:
            return []
        if chain.retrieved:
            self._read_chain(sequence, text)
        logits = self._next_logits(sequence, text)
        log_q = self._warp(text, logits[None], [text.tokens])
        [value] = self._confidence(text, logits[None], log_q, [len(text.tokens)])
        if at_point:
            scores = text.sampler.scores(log_q[0], len(text.tokens), DRAFT)
            k = branch_count(value, plan.k_max)
            return [Outcome(len(drafted), token, p) for token, p in candidates(scores, k)]
        rows = [
            text.sampler.scores(row, start + i, DRAFT)
            for i, row in enumerate([*chain.log_q, log_q[0]])
        ]
        acceptance = self._of_chain(plan.signal, chain)
        if not text.sends_log_q:
            # The draft would go on with the best there, which is accepted more often than q says.
            acceptance += self._acceptance(plan.signal, [value], len(drafted))
        even = plan.branching == "even"
        planned = outcomes(drafted, acceptance, torch.stack(rows), plan.k_max, even)
        most = min(plan.room, len(drafted)) if ends else plan.room
        return [outcome for outcome in planned if outcome.accepted < most]

    def _acceptance(
        self, signal: Signal | None, confidences: list[float], place: int = 0
    ) -> list[float]:
        """Estimated probability of each token's acceptance, given those before it.

        Args:
            place: of the first of them after the committed text.
        """
        if signal is not None and signal.offsets:
            return signal.acceptance(confidences, place)
        return [self._calibration.estimate(value) for value in confidences]

    def _of_chain(self, signal: Signal | None, chain: Drafted) -> list[float]:
        """The same of a chain, retrieved or not."""
        if chain.retrieved:
            return [self._retrieval.estimate(value) for value in chain.confidences]
        return self._acceptance(signal, chain.confidences)

    def _read_chain(self, sequence: int, text: Text) -> None:
        """Run a retrieved chain, for what the draft would have said at its places."""
        chain, count = text.chain, len(text.tokens)
        if count in text.logits:
            return
        covered = min(self._runner.length(sequence), chain.start - 1)
        self._runner.rewind(sequence, covered)
        lacking = self._read(text.tokens[covered:])
        logits = self._fit(text, self._runner.run(sequence, lacking).logits)
        self.meter(len(lacking))
        text.logits[count] = logits[-1]
        places = range(chain.start, count)
        rows = logits[chain.start - covered - 1 : -1]
        contexts = [text.tokens[:place] for place in places]
        chain.log_q = [*warp(rows, contexts, text.processors)] if places else []

    def _next_logits(self, sequence: int, text: Text) -> Tensor:
        """Raw logits ``[vocabulary]`` after the last token; runs what the cache lacks."""
        count = len(text.tokens)
        if count not in text.logits:
            covered = min(self._runner.length(sequence), count - 1)
            self._runner.rewind(sequence, covered)
            lacking = self._read(text.tokens[covered:])
            text.logits[count] = self._fit(text, self._runner.run(sequence, lacking).logits[-1])
            self.meter(len(lacking))
        return text.logits[count]

    @staticmethod
    def _warp(text: Text, logits: Tensor, contexts: list[list[int]]) -> Tensor:
        """Log q after each context, ``[n, vocabulary]`` as the raw logits.

        Args:
            contexts: of no account where there are no processors.
        """
        if text.processors:
            return warp(logits, contexts, text.processors)
        return logits.log_softmax(-1)  # all rows at once: how a draft rounds matters to nobody

    @staticmethod
    def _confidence(text: Text, logits: Tensor, log_q: Tensor, places: list[int]) -> list[float]:
        """At each of n places of the text."""
        if not text.params.coupled:
            if text.processors:
                return confidence(logits)
            unwarped: list[float] = log_q.amax(-1).exp().tolist()
            return unwarped
        # The noise is the target's as well: with it, sampling is greedy decoding.
        pairs = zip(log_q, places, strict=True)
        return confidence(torch.stack([text.sampler.scores(q, at, DRAFT) for q, at in pairs]))

    @staticmethod
    def _choose(text: Text, log_q: Tensor, places: list[int]) -> list[int]:
        """The token to draft at each of n places of the text."""
        if text.params.greedy:
            greedy: list[int] = log_q.argmax(-1).tolist()
            return greedy
        pairs = zip(log_q, places, strict=True)
        return [text.sampler.token(q, at, DRAFT) for q, at in pairs]

    def _read(self, tokens: list[int]) -> list[int]:
        """Where pairs pad one vocabulary differently, the target may say an id the draft lacks."""
        return [min(token, self._runner.vocabulary - 1) for token in tokens]

    @staticmethod
    def _fit(text: Text, logits: Tensor) -> Tensor:
        """Pairs of one tokenizer may pad their vocabularies differently: use the target's size."""
        lacking = text.vocabulary - logits.shape[-1]
        if lacking > 0:
            return torch.nn.functional.pad(logits, (0, lacking), value=-torch.inf)
        return logits[..., : text.vocabulary]

    def _chain(
        self,
        text: Text,
        tokens: list[int],
        confidences: list[float],
        rows: list[Tensor],
        retrieved: bool = False,
    ) -> Chain:
        """A message, which holds nothing that will change."""
        if retrieved:
            rows = [self._certain(text, token) for token in tokens]
        log_q = torch.stack(rows).cpu() if rows and text.sends_log_q else None
        acceptance = self._of_chain(None, Drafted(0, retrieved, confidences))
        return Chain(tokens, [*confidences], acceptance, log_q, retrieved)

    @staticmethod
    def _certain(text: Text, token: int) -> Tensor:
        """Log q where nothing else could have been drafted."""
        return torch.full((text.vocabulary,), -torch.inf).index_fill_(0, torch.tensor(token), 0.0)
