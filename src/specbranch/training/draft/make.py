"""``specbranch draft make``: from a target to a draft for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbranch.engine.inputs import chat_prompt
from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.models.loader import ModelSpec, load_model, load_tokenizer
from specbranch.models.restricted_head import ENTRY
from specbranch.models.vocabularies import check_vocabularies
from specbranch.sampling_params import SamplingParams
from specbranch.training.draft.answers import AnswerStore, self_prompts, write_answers
from specbranch.training.draft.student import from_layers, narrow
from specbranch.training.draft.train import frequent_tokens, train_draft
from specbranch.training.hrad.collect import Prompt, collect
from specbranch.training.hrad.records import Collection, RecordingSetup, manifest
from specbranch.training.hrad.train import Recipe, fit, split

ANSWERING = 0.5  # share of the time for the target's answers
TRAINING = 0.4  # for training; the rest is for loading, measuring and H-RAD
SELF_PROMPTS = 512
HRAD_PROMPTS = 24
HRAD_GAMMA = 8
HRAD_LAYERS = 4
CARD = """# A draft for {target}

A small model with the tokenizer of its target, for speculative decoding. `specbranch draft make`
trained it on {tokens:,} tokens that the target wrote, to {prompts:,} prompts.

- Top-1 agreement with greedy answers that it had not seen: {agreement:.3f}
- Parameters: {parameters:.1f}M; it can draft {drafted:,} of {vocabulary:,} tokens.
- What it gains on your hardware: `specbranch draft report --target {target} --draft {folder}`

```python
llm = LLM("{target}", draft="{folder}")
```
"""


@dataclass(frozen=True)
class DraftRecipe:
    """How to make a draft.

    Attributes:
        target: name of a model, as for `LLM`.
        out: folder for the draft; an interrupted run goes on from what it has left there.
        size: parameters of a new model of the target's family, or None.
        layers: layers of the target, of which a cut is made instead; or None.
        init: name of a draft that is trained on instead; or None.
        minutes: for all of it but loading and H-RAD, which take a few more.
        device: as for `LLM`.
        max_tokens: most tokens of an answer.
        vocabulary: most tokens that the draft can draft; 0 is all.
    """

    target: str
    out: Path
    size: int | None = None
    layers: tuple[int, ...] | None = None
    init: str | None = None
    minutes: float = 60.0
    device: str = "auto"
    max_tokens: int = 192
    vocabulary: int = 8192


def make_draft(recipe: DraftRecipe, texts: Sequence[str]) -> float:
    """Make a draft; returns its agreement with greedy answers that it has not seen.

    Args:
        recipe: how.
        texts: prompts; without any, the target writes them itself.

    Raises:
        InputError: a model that is not there, or too little time or too few prompts.
    """
    tokenizer = load_tokenizer(recipe.target)
    if recipe.init is not None:
        check_vocabularies(tokenizer, load_tokenizer(recipe.init), (recipe.target, recipe.init))
    target = load_model(ModelSpec(recipe.target, dtype="float32", device=recipe.device))
    draft = _untrained(target, recipe)  # refuses what cannot be made, before hours of answers
    work = recipe.out / "work"
    store = AnswerStore(work / "answers")
    prompts = [encode_prompt(text, tokenizer) for text in texts]
    if not prompts:
        prompts = self_prompts(target, tokenizer, SELF_PROMPTS, work / "prompts.json")
    seconds = 60 * recipe.minutes
    write_answers(target, prompts, store, ANSWERING * seconds, recipe.max_tokens)
    answers, held_out = store.split()
    vocabulary = target.get_input_embeddings().num_embeddings
    tokens = None
    if 0 < recipe.vocabulary < vocabulary:
        tokens = frequent_tokens(answers, vocabulary, recipe.vocabulary)
    del target
    agreement = train_draft(
        draft,
        answers,
        held_out,
        tokens,
        TRAINING * seconds,
        work / "checkpoint.pt",
        # The table of a cut is its target's own: there are too few answers to learn a better one.
        freeze_embeddings=recipe.layers is not None,
    )
    _save(draft, tokenizer, tokens, recipe)
    _train_hrad(recipe, prompts)
    written = sum(answer.length for answer in answers)
    (recipe.out / "README.md").write_text(
        CARD.format(
            target=recipe.target,
            folder=recipe.out,
            tokens=written,
            prompts=len({answer.tokens[: answer.prompt_length].tobytes() for answer in answers}),
            agreement=agreement,
            parameters=draft.num_parameters() / 1e6,
            drafted=vocabulary if tokens is None else len(tokens),
            vocabulary=vocabulary,
        ),
        encoding="utf-8",
    )
    return agreement


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt as people's: said to a model that can be talked to, else to be continued."""
    if tokenizer.chat_template:
        return chat_prompt([{"role": "user", "content": text}], tokenizer).token_ids
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def _untrained(target: PreTrainedModel, recipe: DraftRecipe) -> PreTrainedModel:
    torch.manual_seed(0)
    if recipe.init is not None:
        return load_model(ModelSpec(recipe.init, dtype="float32", device=recipe.device))
    if recipe.layers is not None:
        return from_layers(target, recipe.layers).to(target.device)
    size = recipe.size or max(1_000_000, target.num_parameters() // 10)
    return narrow(target, size).to(target.device)


def _save(
    draft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: torch.Tensor | None,
    recipe: DraftRecipe,
) -> None:
    """An ordinary folder; its configuration says what is drafted."""
    setattr(draft.config, ENTRY, None if tokens is None else tokens.tolist())
    draft.to(torch.bfloat16).save_pretrained(recipe.out)
    tokenizer.save_pretrained(recipe.out)


def _train_hrad(recipe: DraftRecipe, prompts: Sequence[list[int]]) -> None:
    """Train the pair's predictor, if there are enough rounds to learn from, beside the draft."""
    params = SamplingParams(max_tokens=recipe.max_tokens)
    with LLM(
        recipe.target,
        str(recipe.out),
        executor="inline",
        device=recipe.device,
        method="speculative",
        enforce_eager=True,
    ) as llm:
        assert llm.draft is not None
        layers = min(HRAD_LAYERS, llm.target.layers)
        setting = RecordingSetup.of(llm.target, llm.draft, HRAD_GAMMA, layers)
        collection = Collection(recipe.out / "work" / "rounds", manifest(setting, params))
        picked = prompts[:: max(1, len(prompts) // HRAD_PROMPTS)][:HRAD_PROMPTS]
        collect(llm, [Prompt(ids, "prompts") for ids in picked], params, collection)
    records, _ = collection.load()
    with suppress(InputError):  # too few rounds
        trained = fit(collection.setting, split(records, 0.2, 0), Recipe(), "H-RAD")
        trained.save(recipe.out / "hrad.safetensors")
