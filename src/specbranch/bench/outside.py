"""`transformers`' own decoding, as a reference from outside: plain, assisted, prompt lookup."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.metrics import Metrics, Round
from specbranch.models.loader import ModelSpec, load_model, load_tokenizer
from specbranch.models.quiet import quiet
from specbranch.models.vocabularies import same_ids
from specbranch.outputs import CompletionOutput, RequestOutput, Speculation
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import FinishReason

LOOKUP_TOKENS = 10  # what transformers' documentation uses


@dataclass(frozen=True)
class Outsider:
    """`transformers.generate` with its own defaults, greedy.

    Attributes:
        llm: whose special tokens and tokenizer count.
        lookup: most tokens to verify of what followed the same words earlier.
    """

    name: str
    label: str
    llm: LLM
    model: PreTrainedModel
    assistant: PreTrainedModel | None = None
    lookup: int | None = None
    competes: bool = True
    exact: bool = False
    samples: bool = False
    devices: int = 1

    def generate(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
        """Decode one prompt.

        Raises:
            InputError: sampling, whose randomness is not ours.
        """
        if not params.greedy:
            raise InputError("the reference of transformers is greedy")
        stops = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            stops |= self.llm.target.eos_ids
        # What the folder's own configuration may ask for besides, such as sampling, is left out.
        config = GenerationConfig(
            max_new_tokens=params.max_tokens,
            do_sample=False,
            eos_token_id=sorted(stops) or None,
            pad_token_id=0,
            prompt_lookup_num_tokens=self.lookup,
        )
        ids = torch.tensor([prompt], device=self.model.device)
        mask = torch.ones_like(ids)
        verified: list[int] = []

        def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            verified.append(kwargs["past_key_values"].get_seq_length())

        hook = self.model.register_forward_pre_hook(note, with_kwargs=True)
        begun = time.perf_counter()
        try:
            with quiet():  # it warns of options that it sets itself
                out = self.model.generate(
                    ids,
                    attention_mask=mask,
                    generation_config=config,
                    assistant_model=self.assistant,
                )
            found = out[0, len(prompt) :].tolist()
            seconds = time.perf_counter() - begun
        finally:
            hook.remove()
        rounds = _rounds(verified, len(prompt), found)
        metrics = Metrics(seconds=seconds)
        for done in rounds:
            metrics.add(done)
        reason = FinishReason.STOP if found and found[-1] in stops else FinishReason.LENGTH
        tokenizer = self.llm.tokenizer
        text = tokenizer.decode(found, skip_special_tokens=True) if tokenizer else ""
        completion = CompletionOutput(text, found, [], reason)
        nothing = Speculation(drafted=False)
        return RequestOutput("", prompt, [completion], params, metrics, rounds, nothing)


def _rounds(verified: list[int], prompt: int, tokens: list[int]) -> list[Round]:
    """What each target forward committed, told by how much was in the cache before the next one.

    The cache lacks only the last committed token.
    """
    ends = [max(0, length + 1 - prompt) for length in verified[1:]] + [len(tokens)]
    begins = [0, *ends]
    return [Round(tokens=tokens[a:b]) for a, b in zip(begins, ends, strict=False)]


def outsiders(llm: LLM, target: ModelSpec, draft: ModelSpec) -> list[Outsider]:
    """`transformers`' own, with models of their own in this process, on all of its cores.

    A draft with another tokenizer assists in another way there, and is left out.
    """
    model = load_model(target)
    assisted, lookup = "transformers, assisted", "transformers, prompt lookup"
    found = [
        Outsider("transformers", "transformers", llm, model),
        Outsider("transformers-lookup", lookup, llm, model, lookup=LOOKUP_TOKENS),
    ]
    if same_ids(load_tokenizer(target.name), load_tokenizer(draft.name)):
        assistant = load_model(draft)
        name = "transformers-assisted"
        found.insert(1, Outsider(name, assisted, llm, model, assistant=assistant))
    return found
