"""`LLM`: load a pair, generate, stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbranch.config import EngineConfig, SpeculativeConfig
from specbranch.engine.assembly import Assembled, assemble, assemble_from_models
from specbranch.engine.engine import Engine
from specbranch.engine.inputs import Prompt, as_prompts, chat_prompt, match_params
from specbranch.engine.intake import samples
from specbranch.engine.request import EngineRequest, StepOutput
from specbranch.executors.cpu_affinity import AffinityPlan
from specbranch.methods.registry import MethodSpec, find_method, pick_method
from specbranch.models.info import ModelInfo
from specbranch.models.padding import NATURAL, Padding
from specbranch.outputs import Piece, RequestOutput, merge_samples
from specbranch.sampling_params import SamplingParams

Conversation = Sequence[Mapping[str, Any]]


class LLM:
    """A target and a draft, ready to generate. Its methods may be called from any thread.

    Args:
        target: name of a bundled model, folder, GGUF file, or name on the Hugging Face hub.
        draft: likewise; None for none. `auto` is the shipped draft for the bundled target, and for
            one that the option `pair` names.
        config: all options at once, instead of `options`.
        options: fields of `ModelConfig`, `SpeculativeConfig`, `ExecutorConfig` and
            `SchedulerConfig`, by name.

    Raises:
        InputError: an option or a model that is not there or broken, or vocabularies that differ.
        UnsupportedModelError: a model cannot be decoded losslessly.
        ExecutorError: an executor died while its model was loaded.
    """

    def __init__(
        self,
        target: str = "target",
        draft: str | None = "auto",
        *,
        config: EngineConfig | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = EngineConfig.of(target=target, draft=draft, **options)
        self._take(assemble(config))

    @classmethod
    def from_models(
        cls,
        target: PreTrainedModel,
        draft: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        executor: str = "inline",
        **options: Any,
    ) -> Self:
        """An `LLM` of models in memory; without a tokenizer it takes and gives token ids.

        The caller vouches that both models share their vocabulary.

        Args:
            target, draft: causal LMs in evaluation mode.
            tokenizer: of both.
            executor: any kind but `process`, which loads models by name.
            options: as for `LLM`.

        Raises:
            InputError, UnsupportedModelError: as `LLM`.
        """
        config = EngineConfig.of(executor=options.pop("lanes", executor), **options)
        llm = cls.__new__(cls)
        llm._take(assemble_from_models(target, draft, tokenizer, config))
        return llm

    def _take(self, assembled: Assembled) -> None:
        self.engine = assembled.engine
        self.executor = assembled.executor

    @property
    def target(self) -> ModelInfo:
        """What the target is."""
        return self.engine.models.target

    @property
    def draft(self) -> ModelInfo | None:
        """What the draft is; None if there is none, or if it was lost for good."""
        lost = self.engine.executors.drafter is None and not self.engine.supervisor.can_restart
        return None if lost else self.engine.models.draft

    @property
    def tokenizer(self) -> Any:
        """Of both models, or None."""
        return self.engine.models.tokenizer

    @property
    def max_model_len(self) -> int:
        """Most tokens of a text, prompt included."""
        return self.engine.models.max_model_len

    @property
    def affinity(self) -> AffinityPlan:
        """The CPU affinity of both models."""
        affinity = self.engine.executors.affinity
        assert affinity is not None, "assembled with one"
        return affinity

    @property
    def padding(self) -> Padding:
        """Of the target's forwards."""
        return self.engine.models.padding

    @property
    def config(self) -> SpeculativeConfig:
        """How requests are decoded that do not say it."""
        return self.engine.config

    @property
    def method(self) -> str:
        """The default decoding method."""
        return pick_method(self.config.method, self.engine.models.draft is not None).name

    def plain(self) -> LLM:
        """The same target without its draft: plain decoding at its fastest.

        At natural padding and, on a CPU, on the cores of both models. It shares the executors.
        """
        models = replace(self.engine.models, draft=None, padding=NATURAL)
        plain = type(self).__new__(type(self))
        config = replace(self.config, method="autoregressive")
        plain.engine = Engine(self.engine.executors, models, config=config)
        plain.executor = self.executor
        return plain

    def get_default_sampling_params(self) -> SamplingParams:
        """The parameters that the target's generation configuration asks for, as in vLLM.

        They may sample; `SamplingParams()` is greedy, whatever the target's configuration.
        """
        defaults: dict[str, Any] = dict(self.engine.models.defaults)
        temperature = defaults.pop("temperature", 0.0)
        return SamplingParams(temperature=temperature).with_defaults(defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        method: str | None = None,
        config: SpeculativeConfig | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Generate for each prompt.

        Args:
            prompts: text, token ids, or what `engine.inputs` takes besides; one or several.
            params: for all prompts, or one for each.
            method: instead of this `LLM`'s default.
            config: likewise.
            progress: show a bar over the prompts.

        Raises:
            InputError: a prompt is empty or leaves no room in the context, or an unknown method.
        """
        several = as_prompts(prompts)
        pairs = zip(several, match_params(several, params), strict=True)
        spec = self._method(method)
        made = [
            [
                self.engine.make_request(prompt, sample, method=spec, config=config)
                for sample in samples(own)
            ]
            for prompt, own in pairs
        ]
        for requests in tqdm(made, desc="prompts", disable=not progress):
            for request in requests:
                for _ in self._rounds(request):
                    pass
        return [merge_samples([request.output() for request in requests]) for requests in made]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        method: str | None = None,
        config: SpeculativeConfig | None = None,
        progress: bool = False,
        **template: Any,
    ) -> list[RequestOutput]:
        """Answer a conversation, or each of several, by the tokenizer's chat template.

        Args:
            messages: ``[{"role": "user", "content": "…"}, …]``, or a list of such lists.
            params, method, config, progress: as for `generate`.
            template: options of `engine.inputs.chat_prompt`: `chat_template`,
                `add_generation_prompt`, `continue_final_message`, `tools`, `chat_template_kwargs`.

        Raises:
            InputError: no chat template, or messages that it refuses; else as `generate`.
        """
        several = _conversations(messages)
        prompts = [chat_prompt(each, self.tokenizer, **template) for each in several]
        return self.generate(prompts, params, method=method, config=config, progress=progress)

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, method: str | None = None
    ) -> Iterator[Piece]:
        """Generate for one prompt, yielding text as soon as it is final.

        Raises:
            InputError: as `generate`, before anything is yielded.
        """
        return self.stream_request(self.request(prompt, params, method=method))

    def request(
        self, prompt: Prompt, params: SamplingParams | None = None, *, method: str | None = None
    ) -> EngineRequest:
        """A request for `stream_request`, whose metrics can be read while and after it runs.

        Raises:
            InputError: as `generate`.
        """
        return self.engine.make_request(prompt, params, method=self._method(method))

    def stream_request(self, request: EngineRequest) -> Iterator[Piece]:
        """Run a request, yielding text as soon as it is final. It is aborted if that is ended."""
        for _ in self._rounds(request):
            yield from request.pieces()

    def _rounds(self, request: EngineRequest) -> Iterator[StepOutput]:
        """Run a request; every step that advanced it, or another one to make room for it."""
        self.engine.submit(request)
        try:
            while not request.finished:
                yield from self.engine.step([request])
            if request.error is not None:
                raise request.error
        finally:
            if not request.finished:
                self.engine.abort(request)

    def reset(self) -> None:
        """Forget what was learned from the texts so far: acceptance, and latencies."""
        self.engine.executors.reset()

    def close(self) -> None:
        """Release both models."""
        self.engine.executors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _method(self, name: str | None) -> MethodSpec | None:
        """The method of a name; None is the configuration's."""
        return None if name is None else find_method(name, self.engine.models.draft is not None)


def _conversations(messages: Any) -> list[Any]:
    """One conversation or several, as a list of conversations."""
    if isinstance(messages, list | tuple) and messages and isinstance(messages[0], list | tuple):
        return list(messages)
    return [messages]
