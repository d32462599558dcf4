"""A request's way through the executors: from the prompt to its rounds, whatever the draft does."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field, replace
from typing import Any

from specbranch.engine.detokenizer import Detokenizer
from specbranch.errors import ExecutorError, InputError
from specbranch.executors.base import Executor
from specbranch.executors.cpu_affinity import AffinityPlan
from specbranch.methods import DRAFTLESS, METHODS, Decoder, Executors, SpeculativeConfig
from specbranch.methods.autoregressive import autoregressive
from specbranch.methods.specbranch import specbranch
from specbranch.metrics import Round
from specbranch.models.info import ModelInfo
from specbranch.models.padding import Padding, PaddingOption
from specbranch.outputs import Request
from specbranch.sampling_params import SamplingParams
from specbranch.sequence import Sequence
from specbranch.workers.messages import Opening

logger = logging.getLogger("specbranch")

Prompt = str | ListLike[int]


@dataclass(frozen=True)
class Engine:
    """Makes requests of prompts, and runs them on a pair's executors.

    Attributes:
        executors: of the pair; the draft's is None from the moment it fails.
        target, draft: what the models are; None is plain decoding only.
        tokenizer: of the pair; without one prompts are token ids.
        max_model_len: most tokens of a text, prompt included.
        affinity: the executors' shares of the cores.
        padding: of the target's forwards.
        ids: of the sequences, for all engines that share the executors.
    """

    executors: Executors
    target: ModelInfo
    draft: ModelInfo | None
    tokenizer: Any
    max_model_len: int
    affinity: AffinityPlan
    padding: Padding
    ids: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def over(
        cls,
        executors: Executors,
        tokenizer: Any,
        affinity: AffinityPlan,
        padding: PaddingOption,
        max_model_len: int | None,
    ) -> Engine:
        """An engine for executors that have just started, made for what their models are.

        Args:
            max_model_len: None is the models' own limit.

        Raises:
            InputError: a `max_model_len` beyond it.
        """
        asked = [executor.submit("describe") for executor in executors.all()]
        facts: list[ModelInfo] = [call.result() for call in asked]
        longest = min(fact.positions for fact in facts)
        if max_model_len is not None and not 2 <= max_model_len <= longest:
            raise InputError(f"max_model_len must be between 2 and {longest}, not {max_model_len}")
        target, draft = facts[0], facts[1] if len(facts) > 1 else None
        picked = Padding.pick(padding, target.invariant_from)
        if not target.any_threads:
            logger.warning(
                "%s rounds differently with other numbers of threads: to stay bit-exact it keeps "
                "%s where the draft is idle, too",
                target.name,
                affinity.target,
            )
            affinity = replace(affinity, alone=affinity.target)
        return cls(executors, target, draft, tokenizer, max_model_len or longest, affinity, picked)

    def encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        """A prompt as text, empty where it is given as token ids, and as token ids.

        Raises:
            InputError: it is empty, or leaves no room in the context.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise InputError("the prompt is empty: give some text to continue")
            if self.tokenizer is None:
                raise InputError("this LLM has no tokenizer: give the prompt as token ids")
            text, ids = prompt, self.tokenizer(prompt)["input_ids"]
        else:
            text, ids = "", list(prompt)
        vocabulary = self.target.vocabulary
        if not ids:
            raise InputError("the prompt has no tokens: give some text to continue")
        if not all(0 <= token < vocabulary for token in ids):
            raise InputError(f"prompt token ids must be between 0 and {vocabulary - 1}")
        if len(ids) >= self.max_model_len:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the context holds {self.max_model_len}: "
                f"shorten it to {self.max_model_len - 1} tokens or fewer"
            )
        return text, ids

    def request(self, ids: list[int], params: SamplingParams | None) -> Request:
        """A request to continue `ids`, which `encode` has let through.

        Raises:
            InputError: stop strings without a tokenizer.
        """
        params = params or SamplingParams()
        if params.seed is None and not params.greedy:
            params = replace(params, seed=secrets.randbits(63))
        if params.stop and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer: use stop_token_ids")
        stream = Detokenizer(self.tokenizer, ids, params.stop)
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.target.eos_ids
        sequence = Sequence(
            next(self.ids),
            ids,
            min(params.max_tokens, self.max_model_len - len(ids)),
            frozenset(stop_ids),
            ends_text=lambda tokens: self.tokenizer is not None and stream.push(tokens[-1]),
        )
        return Request(sequence, stream, params)

    def run(
        self, request: Request, decoder: Decoder, overlap: bool, options: SpeculativeConfig
    ) -> Iterator[Round]:
        """The decoder's rounds, timed and counted.

        Args:
            overlap: whether the decoder has both executors work at the same time.
        """
        now = self.executors.target.now
        started = before = now()
        for done in self._decode(request, decoder, overlap, options):
            ended = now()
            if not request.rounds:  # reading the prompt is no part of the first round
                before = min(span.start for span in done.spans)
            done.seconds, before = ended - before, ended
            request.rounds.append(done)
            request.metrics.add(done)
            request.metrics.seconds = ended - started
            if request.sequence.finished:
                request.stream.finish()
            yield done
            before += now() - ended  # the reader's time is not the round's
            started += now() - ended

    def _decode(
        self, request: Request, decoder: Decoder, overlap: bool, options: SpeculativeConfig
    ) -> Iterator[Round]:
        """The decoder's rounds; closes the sequence on its executors, however it ends.

        Where the draft executor fails, plain decoding goes on from the last committed token.
        """
        sequence = request.sequence
        draftless = decoder in [METHODS[method] for method in DRAFTLESS]
        drafting = not draftless and self.executors.draft is not None
        overlap = drafting and overlap
        executors = Executors(
            self.executors.target,
            affinity=self.affinity,
            tunings=self.executors.tunings,
            greedy=request.params.greedy,
        )
        if drafting and self.executors.draft is not None:
            executors.draft = self.executors.draft
            executors.draft.set_affinity(self.affinity.share("draft", overlap))
        # The prompt is most work for the target, and next to none for the draft.
        executors.share_target(overlap=False)
        # What it learned of greedy texts says less than the noise that both models choose by.
        judged = not request.params.coupled or options.epsilon != "auto"
        opening = Opening(
            sequence.prompt,
            request.params,
            len(sequence.prompt) + sequence.max_tokens,
            self.target.vocabulary,
            sequence.stop_ids,
            options.branch_tokens,
            self.padding,
            signals=judged and decoder is specbranch and drafting and options.hrad,
        )
        try:
            try:
                # The draft first: it reads the prompt while the target may keep this thread busy.
                reading = [
                    executor.submit("open", sequence.id, opening)
                    for executor in executors.all()[::-1]
                ]
                for call in reading:
                    call.result()
                decode = decoder if drafting or draftless else autoregressive
                yield from decode(sequence, executors, options)
            except ExecutorError as error:
                lost = executors.draft is not None and error.executor == executors.draft.name
                if not lost or self.executors.closed:
                    raise
                self._lose_draft(error)
                executors.share_target(overlap=False)
                executors.target.submit("rewind", sequence.id, sequence.length).result()
                yield from autoregressive(sequence, Executors(executors.target), options)
        finally:
            for executor in executors.all():
                if executor in self.executors.all() and not self.executors.closed:
                    self._close_sequence(executor, sequence.id)

    def _close_sequence(self, executor: Executor, sequence: int) -> None:
        try:
            executor.submit("close", sequence).result()
        except ExecutorError as error:
            if executor is not self.executors.draft:
                raise
            self._lose_draft(error)

    def _lose_draft(self, error: ExecutorError) -> None:
        """Go on without the draft executor, and say so once."""
        logger.warning("%s: going on with plain decoding, slower but with the same text", error)
        assert self.executors.draft is not None
        self.executors.draft.close()
        self.executors.draft = None
