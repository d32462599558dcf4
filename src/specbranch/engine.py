"""A request's way through the lanes: from the prompt to its rounds, whatever the draft does."""

from __future__ import annotations

import itertools
import logging
import secrets
from collections.abc import Iterator
from collections.abc import Sequence as ListLike
from dataclasses import dataclass, field, replace
from typing import Any

from specbranch.decoders import DECODERS, DRAFTLESS, Decoder, DecodingOptions, Lanes
from specbranch.decoders.autoregressive import autoregressive
from specbranch.decoders.specbranch import specbranch
from specbranch.errors import InputError, LaneError
from specbranch.lanes.base import Lane
from specbranch.lanes.placement import Placement
from specbranch.metrics import Round
from specbranch.models.facts import ModelFacts
from specbranch.models.width import AskedWidth, Width
from specbranch.outputs import Request
from specbranch.sampling import SamplingParams
from specbranch.sequence import Sequence
from specbranch.text import TextStream
from specbranch.workers.messages import Opening

logger = logging.getLogger("specbranch")

Prompt = str | ListLike[int]


@dataclass(frozen=True)
class Engine:
    """Makes requests of prompts, and runs them on a pair's lanes.

    Attributes:
        lanes: of the pair; the draft's is None from the moment it fails.
        target, draft: what the models are; None is plain decoding only.
        tokenizer: of the pair; without one prompts are token ids.
        max_model_len: most tokens of a text, prompt included.
        placement: the lanes' shares of the cores.
        width: of the target's forwards.
        ids: of the sequences, for all engines that share the lanes.
    """

    lanes: Lanes
    target: ModelFacts
    draft: ModelFacts | None
    tokenizer: Any
    max_model_len: int
    placement: Placement
    width: Width
    ids: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def over(
        cls,
        lanes: Lanes,
        tokenizer: Any,
        placement: Placement,
        width: AskedWidth,
        max_model_len: int | None,
    ) -> Engine:
        """An engine for lanes that have just started, made for what their models are.

        Args:
            max_model_len: None is the models' own limit.

        Raises:
            InputError: a `max_model_len` beyond it.
        """
        asked = [lane.submit("describe") for lane in lanes.all()]
        facts: list[ModelFacts] = [call.result() for call in asked]
        longest = min(fact.positions for fact in facts)
        if max_model_len is not None and not 2 <= max_model_len <= longest:
            raise InputError(f"max_model_len must be between 2 and {longest}, not {max_model_len}")
        target, draft = facts[0], facts[1] if len(facts) > 1 else None
        picked = Width.pick(width, target.invariant_from)
        if not target.any_threads:
            logger.warning(
                "%s rounds differently with other numbers of threads: to stay bit-exact it keeps "
                "%s where the draft is idle, too",
                target.name,
                placement.target,
            )
            placement = replace(placement, alone=placement.target)
        return cls(lanes, target, draft, tokenizer, max_model_len or longest, placement, picked)

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
        stream = TextStream(self.tokenizer, ids, params.stop)
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
        self, request: Request, decoder: Decoder, overlap: bool, options: DecodingOptions
    ) -> Iterator[Round]:
        """The decoder's rounds, timed and counted.

        Args:
            overlap: whether the decoder has both lanes work at the same time.
        """
        now = self.lanes.target.now
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
        self, request: Request, decoder: Decoder, overlap: bool, options: DecodingOptions
    ) -> Iterator[Round]:
        """The decoder's rounds; closes the sequence on its lanes, however it ends.

        Where the draft lane fails, plain decoding goes on from the last committed token.
        """
        sequence = request.sequence
        draftless = decoder in [DECODERS[method] for method in DRAFTLESS]
        drafting = not draftless and self.lanes.draft is not None
        overlap = drafting and overlap
        lanes = Lanes(
            self.lanes.target,
            placement=self.placement,
            tunings=self.lanes.tunings,
            greedy=request.params.greedy,
        )
        if drafting and self.lanes.draft is not None:
            lanes.draft = self.lanes.draft
            lanes.draft.occupy(self.placement.share("draft", overlap))
        # The prompt is most work for the target, and next to none for the draft.
        lanes.share_target(overlap=False)
        # What it learned of greedy texts says less than the noise that both models choose by.
        judged = not request.params.coupled or options.epsilon != "auto"
        opening = Opening(
            sequence.prompt,
            request.params,
            len(sequence.prompt) + sequence.max_tokens,
            self.target.vocabulary,
            sequence.stop_ids,
            options.branch_tokens,
            self.width,
            signals=judged and decoder is specbranch and drafting and options.hrad,
        )
        try:
            try:
                # The draft first: it reads the prompt while the target may keep this thread busy.
                reading = [lane.submit("open", sequence.id, opening) for lane in lanes.all()[::-1]]
                for call in reading:
                    call.result()
                decode = decoder if drafting or draftless else autoregressive
                yield from decode(sequence, lanes, options)
            except LaneError as error:
                lost = lanes.draft is not None and error.lane == lanes.draft.name
                if not lost or self.lanes.closed:
                    raise
                self._lose_draft(error)
                lanes.share_target(overlap=False)
                lanes.target.submit("rewind", sequence.id, sequence.length).result()
                yield from autoregressive(sequence, Lanes(lanes.target), options)
        finally:
            for lane in lanes.all():
                if lane in self.lanes.all() and not self.lanes.closed:
                    self._close_sequence(lane, sequence.id)

    def _close_sequence(self, lane: Lane, sequence: int) -> None:
        try:
            lane.submit("close", sequence).result()
        except LaneError as error:
            if lane is not self.lanes.draft:
                raise
            self._lose_draft(error)

    def _lose_draft(self, error: LaneError) -> None:
        """Go on without the draft lane, and say so once."""
        logger.warning("%s: going on with plain decoding, slower but with the same text", error)
        assert self.lanes.draft is not None
        self.lanes.draft.close()
        self.lanes.draft = None
