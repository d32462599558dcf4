"""The hook into `transformers`: ``model.generate(…, custom_generate=specbranch.generate)``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput

from specbranch.config import SpeculativeConfig
from specbranch.engine.driver import DrafterFailedError, Driver
from specbranch.engine.executor_pair import ExecutorPair
from specbranch.errors import InputError
from specbranch.executors.base import Request
from specbranch.executors.inline import InlineExecutor
from specbranch.integrations.transformers_checks import check_length, check_request, find_spec
from specbranch.integrations.transformers_rows import AsInBatch, Row, rows_of
from specbranch.methods.base import MethodContext
from specbranch.methods.registry import PLAIN, MethodSpec
from specbranch.metrics import Round
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.recurrent_runner import runner_of
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import validate
from specbranch.policy.tuning import Tuning
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import TokenSequence
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import OpenText
from specbranch.workers.requests import CloseRequest, OpenRequest, RewindRequest
from specbranch.workers.text_worker import TextWorker
from specbranch.workers.verifier import Verifier

logger = logging.getLogger("specbranch")

# Models that passed the runner's self-check, and how they were set up then.
_checked: WeakKeyDictionary[PreTrainedModel, tuple[Any, ...]] = WeakKeyDictionary()


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model: PreTrainedModel | None = None,
    method: str = "specbranch",
    gamma: int | Literal["auto"] = 8,
    epsilon: float | Literal["auto"] = SpeculativeConfig.epsilon,
    k_max: int | Literal["auto"] = SpeculativeConfig.k_max,
    padding: int | None = None,
    token_streamer: BaseStreamer | None = None,
    assistant_model: PreTrainedModel | None = None,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """The decoding loop of `transformers`' ``generate``, with a draft model's help.

    Not called directly but handed to the target's own ``generate``, which prepares everything::

        target.generate(**inputs, draft_model=draft, custom_generate=specbranch.generate)

    Greedy output is that of ``target.generate(**inputs)``. With ``do_sample=True`` it has
    the same
    distribution, and with the same ``torch.manual_seed`` the text is the same whatever the draft,
    the method and γ (the `coupled` rule); it is another text than ``multinomial`` would draw.

    *Rounding.* `transformers` runs one token a forward, and verification several, for which
    kernels round differently: where the target's two best tokens lie closer than that, the texts
    may part. No padding of our own can avoid it, since the other side of the comparison is not
    ours.
    So the default is the natural padding, the cheapest: no padding, and attention over the text so
    far instead of everything up to ``max_length``. A fixed `padding` makes the text independent of
    the draft to the last bit, near-ties included, as `LLM` has it.

    *Rows* of a batch are decoded one after another, without their padding. Logits processors and
    stopping criteria see ids as in ``target.generate``, padding included; processors are also
    called on drafted text that is never committed, so they must not keep a state.

    *What does not get here.* `transformers` (5.23) keeps its own arguments ``assistant_model``,
    ``streamer`` and ``tokenizer`` from a custom loop. Pass ``draft_model=`` and
    ``token_streamer=`` instead of the first two, and in place of ``stop_strings=``, which need the
    third, ``stopping_criteria=[StopStringCriteria(tokenizer, [...])]``.

    Args:
        model: the target.
        input_ids: int64 ``[batch, n]``, padded on the left where the attention mask is 0.
        logits_processor: made from the generation config by ``generate``: holds temperature etc.
        stopping_criteria: asked after every token, with ids ``[1, length]`` and scores None.
        generation_config: the prepared one; greedy or sampling, ``num_return_sequences`` included.
        draft_model: a smaller causal LM with the target's tokenizer.
        method: `specbranch`, `pearl`, `speculative`, `adaedl`; or `lookup`, `lookahead` or
            `autoregressive`, which need no draft.
        gamma: γ, most tokens drafted ahead in one round; `auto` follows the models' speed.
        epsilon: ε, draft confidence below which a position is uncertain.
        k_max: most branches at a branch point.
        padding: tokens of every target forward; None runs them as they come.
        token_streamer: given the prompt ``[1, n]`` and each new token ``[1]``; for one text only.
        assistant_model: another name of `draft_model`, for a caller that does hand it on.
        streamer: likewise of `token_streamer`, for a caller that has put the prompt itself.
        model_kwargs: what ``generate`` prepared for the target's forward.

    Returns:
        int64 ``[batch, longest]``: prompts and what was generated, padded on the right with the
        pad token; with ``return_dict_in_generate`` a `GenerateDecoderOnlyOutput` that holds just
        these `sequences`.

    Raises:
        InputError: no draft model, or something asked for that this loop cannot give.
        UnsupportedModelError: a model cannot be decoded losslessly.
    """
    config = SpeculativeConfig(gamma, epsilon, k_max, speculate="always", method=method)
    draft = draft_model if draft_model is not None else assistant_model
    spec = find_spec(method, draft)
    if padding is not None and padding < 1:
        raise InputError(f"padding must be 1 or more, or None, not {padding!r}")
    forwards = NATURAL if padding is None else Padding.fixed(padding)
    runner = _runner(model, "the target", forwards)
    drafting = None
    if draft is not None and spec.needs_draft:
        drafting = _runner(draft, "the draft")
    check_request(generation_config, logits_processor, model_kwargs)
    longest = stopping_criteria.max_length or generation_config.max_length
    check_length(longest, runner, drafting)
    rows = rows_of(input_ids, model_kwargs)
    output = token_streamer if token_streamer is not None else streamer
    if output is not None and len(rows) > 1:
        raise InputError(f"a streamer takes one text, not {len(rows)}: generate them one by one")
    pad = None
    if any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
        pad = generation_config._pad_token_tensor
        if pad is None and len(rows) > 1:
            raise InputError("the texts of a batch may end at different places: set pad_token_id")

    loop = _Loop(
        ExecutorPair(
            InlineExecutor(lambda: Verifier(runner), "target"),
            None if drafting is None else InlineExecutor(lambda: Drafter(drafting), "draft"),
        ),
        spec,
        config,
        logits_processor,
        stopping_criteria,
        longest,
        runner.vocabulary,
        forwards,
    )
    seeds: list[int | None] = [None] * len(rows)
    if generation_config.do_sample:
        seeds = torch.randint(2**63 - 1, (len(rows),)).tolist()
    if token_streamer is not None:
        token_streamer.put(input_ids.cpu())
    texts: list[list[int]] = []
    for row, seed in zip(rows, seeds, strict=True):
        texts.append([])
        for token in loop.run(row, seed):
            texts[-1].append(token)
            if output is not None:
                output.put(torch.tensor([token]))
    if output is not None:
        output.end()

    length = max(map(len, texts))
    for i, text in enumerate(texts):
        if len(text) == length:
            continue
        if pad is not None:
            text += [int(pad)] * (length - len(text))
        else:  # `transformers` then goes on with every text until all are done
            texts[i] = list(loop.run(rows[i], seeds[i], exactly=length))
    generated = torch.tensor(texts, dtype=input_ids.dtype, device=input_ids.device)
    sequences = torch.cat([input_ids, generated], dim=1)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences


@dataclass(frozen=True)
class _Loop:
    """What is the same for every row of a batch."""

    executors: ExecutorPair
    spec: MethodSpec
    config: SpeculativeConfig
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    longest: int
    vocabulary: int
    padding: Padding

    def run(self, row: Row, seed: int | None, exactly: int | None = None) -> Iterator[int]:
        """Generated tokens of a row, each as soon as it is committed.

        Where the draft fails, the text goes on by plain decoding.

        Args:
            seed: None is greedy decoding.
            exactly: generate that many tokens, whatever the stopping criteria say.
        """

        def ended(tokens: list[int]) -> bool:
            ids = row.with_generated(torch.tensor([tokens]))
            return exactly is None and bool(torch.as_tensor(self.criteria(ids, None)).all())

        # A maximum not above the prompt's length still means one token, as in `transformers`.
        room = exactly or max(1, self.longest - row.ids.shape[1])
        stop_ids = self._stop_ids()
        sequence = TokenSequence(row.index, row.prompt, room, stop_ids, ended)
        text = OpenText(
            row.index,
            row.prompt,
            self._params(row, seed),
            len(row.prompt) + room,
            self.vocabulary,
            stop_ids,
            self.config.branch_tokens,
            self.padding,
        )
        given = 0
        try:
            for _ in self._rounds(sequence, text):
                yield from sequence.tokens[given:]
                given = len(sequence.tokens)
        finally:
            self._on_all(CloseRequest([row.index]))
        if sequence.tokens[-1] in stop_ids:
            ended(sequence.tokens)  # the one token that the other criteria have not seen

    def _rounds(self, sequence: TokenSequence, text: OpenText) -> Iterator[Round]:
        driver, spec = Driver(self.executors), self.spec
        context = MethodContext(sequence, self.config, Tuning(self.config))
        try:
            self._open(OpenRequest([text]))
            yield from driver.rounds(spec.make(context))
        except DrafterFailedError as failed:
            logger.warning("the draft failed (%s): going on with plain decoding", failed.error)
            if failed.done is not None:
                yield failed.done
            rewind = RewindRequest(sequence.id, sequence.length)
            self.executors.verifier.submit(rewind).result()
            yield from driver.rounds(PLAIN.make(context))

    def _open(self, request: OpenRequest) -> None:
        self.executors.verifier.submit(request).result()
        if self.executors.drafter is not None:
            try:
                self.executors.drafter.submit(request).result()
            except Exception as error:
                raise DrafterFailedError(error) from error

    def _on_all(self, request: Request[TextWorker, Any]) -> None:
        self.executors.verifier.submit(request).result()
        if self.executors.drafter is not None:
            self.executors.drafter.submit(request).result()

    def _params(self, row: Row, seed: int | None) -> SamplingParams:
        extra = LogitsProcessorList([AsInBatch(self.processors, row)] if self.processors else [])
        temperature = 0.0 if seed is None else 1.0
        return SamplingParams(temperature=temperature, seed=seed, extra_processors=extra)

    def _stop_ids(self) -> frozenset[int]:
        # No subclass: it may have its own idea of when these tokens end a text.
        known = [c for c in self.criteria if type(c) is EosTokenCriteria]
        return frozenset(token for c in known for token in c.eos_token_id.tolist())


def _runner(model: PreTrainedModel, name: str, padding: Padding = NATURAL) -> CausalRunner:
    """A runner of a model that passed the self-check, now or the last time it was set up so."""
    runner = runner_of(model)
    attention = model.config.get_text_config()._attn_implementation
    setup = (attention, model.dtype, model.device, model.training, padding)
    if _checked.get(model) != setup:
        validate(runner, name, padding)
        _checked[model] = setup
    return runner
