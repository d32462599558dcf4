"""The hook into `transformers`: ``model.generate(…, custom_generate=specbranch.generate)``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput, GenerationMode

from specbranch.errors import InputError
from specbranch.executors.inline import InlineExecutor
from specbranch.methods import DRAFTLESS, METHODS, Executors, SpeculativeConfig
from specbranch.models.loader import check_cache
from specbranch.models.padding import NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.validation import validate_cache
from specbranch.sampling_params import SamplingParams
from specbranch.sequence import Sequence
from specbranch.workers.drafter import DraftWorker
from specbranch.workers.messages import Opening
from specbranch.workers.verifier import TargetWorker

# What `transformers` prepares for every forward; the runner prepares its own.
_PREPARED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
# They keep a state from step to step, which drafting, where steps are taken back, would spoil.
_STATEFUL = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)
# The costly ones, and sure to treat every row alike: no need to show them the whole batch.
_ROWWISE = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)

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
    options = SpeculativeConfig(gamma, epsilon, k_max, speculate="always")
    draft = draft_model if draft_model is not None else assistant_model
    _check_method(method, draft)
    if padding is not None and padding < 1:
        raise InputError(f"padding must be 1 or more, or None, not {padding!r}")
    forwards = NATURAL if padding is None else Padding.fixed(padding)
    runner = _runner(model, "the target", forwards)
    drafting = None
    if draft is not None and method not in DRAFTLESS:
        drafting = _runner(draft, "the draft")
    _check_request(generation_config, logits_processor, model_kwargs)
    longest = stopping_criteria.max_length or generation_config.max_length
    _check_length(longest, runner, drafting)
    rows = _rows(input_ids, model_kwargs)
    output = token_streamer if token_streamer is not None else streamer
    if output is not None and len(rows) > 1:
        raise InputError(f"a streamer takes one text, not {len(rows)}: generate them one by one")
    pad = None
    if any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
        pad = generation_config._pad_token_tensor
        if pad is None and len(rows) > 1:
            raise InputError("the texts of a batch may end at different places: set pad_token_id")

    executors = _executors(runner, drafting)
    loop = _Loop(
        executors,
        method,
        options,
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
class _Row:
    """One text of a batch.

    Attributes:
        index: which row of how many (`batch`).
        ids: int64 ``[1, n]``, padding included.
        prompt: the same without padding.
    """

    index: int
    batch: int
    ids: Tensor
    prompt: list[int]

    def with_generated(self, tokens: Tensor) -> Tensor:
        """Ids as `transformers` has them after `tokens` ``[1, m]``, int64 ``[1, n + m]``."""
        return torch.cat([self.ids, tokens.to(self.ids)], dim=1)


class _AsInBatch(LogitsProcessor):
    """The caller's processors, shown one row of the batch as if the whole batch were there.

    Some count positions from the padded beginning, some have one setting for each row.
    """

    def __init__(self, processors: LogitsProcessorList, row: _Row) -> None:
        self._processors = processors
        self._row = row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        row = self._row
        ids = row.with_generated(input_ids[:, len(row.prompt) :])
        # A copy: a processor may write to it, and the logits are looked at again.
        processed = scores.to(row.ids.device, copy=True)
        for processor in self._processors:
            if row.batch == 1 or isinstance(processor, _ROWWISE):
                processed = processor(ids, processed)
            else:
                whole = processor(ids.repeat(row.batch, 1), processed.repeat(row.batch, 1))
                processed = whole[row.index : row.index + 1]
        return processed.to(scores.device)


@dataclass(frozen=True)
class _Loop:
    """What is the same for every row of a batch."""

    executors: Executors
    method: str
    options: SpeculativeConfig
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    longest: int
    vocabulary: int
    padding: Padding

    def run(self, row: _Row, seed: int | None, exactly: int | None = None) -> Iterator[int]:
        """Generated tokens of a row, each as soon as it is committed.

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
        sequence = Sequence(row.index, row.prompt, room, stop_ids, ended)
        params = self._params(row, seed)
        opening = Opening(
            row.prompt,
            params,
            len(row.prompt) + room,
            self.vocabulary,
            stop_ids,
            self.options.branch_tokens,
            self.padding,
        )
        for executor in self.executors.all():
            executor.submit("open", sequence.id, opening).result()
        given = 0
        for _ in METHODS[self.method](sequence, self.executors, self.options):
            yield from sequence.tokens[given:]
            given = len(sequence.tokens)
        if sequence.tokens[-1] in stop_ids:
            ended(sequence.tokens)  # the one token that the other criteria have not seen
        for executor in self.executors.all():
            executor.submit("close", sequence.id).result()

    def _params(self, row: _Row, seed: int | None) -> SamplingParams:
        extra = LogitsProcessorList([_AsInBatch(self.processors, row)] if self.processors else [])
        temperature = 0.0 if seed is None else 1.0
        return SamplingParams(temperature=temperature, seed=seed, extra_processors=extra)

    def _stop_ids(self) -> frozenset[int]:
        # No subclass: it may have its own idea of when these tokens end a text.
        known = [c for c in self.criteria if type(c) is EosTokenCriteria]
        return frozenset(token for c in known for token in c.eos_token_id.tolist())


def _rows(input_ids: Tensor, model_kwargs: dict[str, Any]) -> list[_Row]:
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    if not input_ids.shape[1] or not bool(mask[:, -1].all()):
        raise InputError(
            "every prompt must end with a token that the attention mask shows: pad on the left "
            "(tokenizer.padding_side = 'left')"
        )
    positions = model_kwargs.get("position_ids")
    counted = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
    if positions is not None and not (
        positions.dim() == 2 and torch.equal(positions.expand_as(counted), counted)
    ):
        raise InputError("specbranch counts positions itself: leave out position_ids=")
    batch = input_ids.shape[0]
    return [
        _Row(i, batch, input_ids[i : i + 1], input_ids[i][mask[i].bool()].tolist())
        for i in range(batch)
    ]


def _executors(runner: CausalRunner, drafting: CausalRunner | None) -> Executors:
    target = InlineExecutor(lambda: TargetWorker(runner), "target")
    if drafting is None:
        return Executors(target)
    return Executors(target, InlineExecutor(lambda: DraftWorker(drafting), "draft"))


def _runner(model: PreTrainedModel, name: str, padding: Padding = NATURAL) -> CausalRunner:
    """A runner of a model that passed the self-check, now or the last time it was set up so."""
    check_cache(model.config, name)
    runner = CausalRunner(model)
    attention = model.config.get_text_config()._attn_implementation
    setup = (attention, model.dtype, model.device, model.training, padding)
    if _checked.get(model) != setup:
        validate_cache(runner, name, padding)
        _checked[model] = setup
    return runner


def _check_method(method: str, draft: object) -> None:
    if method not in METHODS:
        raise InputError(f"unknown method '{method}': use {', '.join(METHODS)}")
    if method in DRAFTLESS:
        return
    if draft is None:
        raise InputError(
            "no draft model: pass it as draft_model= (transformers does not hand assistant_model= "
            "on to custom_generate)"
        )
    if not isinstance(draft, torch.nn.Module):
        raise InputError(f"draft_model must be a loaded model, not a {type(draft).__name__}")


def _check_length(longest: int, runner: CausalRunner, drafting: CausalRunner | None) -> None:
    for name, used in (("target", runner), ("draft", drafting)):
        if used is not None and longest > used.positions:
            raise InputError(
                f"the text may come to {longest} tokens and the {name}'s context holds "
                f"{used.positions}: lower max_new_tokens or max_length"
            )


def _check_request(
    config: GenerationConfig, processors: LogitsProcessorList, model_kwargs: dict[str, Any]
) -> None:
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise InputError(
            f"specbranch decodes greedily or samples, it has no {mode.value}: leave out num_beams, "
            "penalty_alpha, prompt_lookup_num_tokens and the like"
        )
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    if config.return_dict_in_generate and (asked := [o for o in outputs if getattr(config, o)]):
        raise InputError(f"specbranch returns the tokens alone: leave out {', '.join(asked)}")
    if config.cache_implementation == "quantized":
        raise InputError("specbranch has no quantized cache: leave out cache_implementation")
    for processor in processors:
        if isinstance(processor, _STATEFUL):
            raise InputError(
                f"{type(processor).__name__} keeps a state from step to step and cannot be used "
                "with drafting: leave out guidance_scale and SynthID watermarking"
            )
    cache = model_kwargs.get("past_key_values")
    if cache is not None and (
        getattr(cache, "_is_user_defined", False) or cache.get_seq_length() > 0
    ):
        raise InputError("specbranch keeps its own cache: leave out past_key_values=")
    if other := [k for k, v in model_kwargs.items() if v is not None and k not in _PREPARED]:
        raise InputError(f"specbranch continues token ids alone: leave out {', '.join(other)}")
