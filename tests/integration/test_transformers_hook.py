"""`custom_generate=specbranch.generate` gives what `transformers`' own loop gives."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers import PreTrainedModel as Model

import specbranch
from specbranch import LLM, SamplingParams
from tests.families import EXACT, WINDOW
from tests.hook import (
    VOCABULARY,
    Drafts,
    Recorder,
    both,
    ours_alone,
    padded,
    prompt,
    text_without_end,
)


@pytest.mark.parametrize("name", ["random", "similar", "target"])
def test_greedy_text_is_that_of_transformers(target: Model, drafts: Drafts, name: str) -> None:
    for length in (1, 23):
        plain, ours = both(target, drafts[name], **prompt(length))
        assert ours.tolist() == plain.tolist()
    plain, ours = both(target, drafts[name], **prompt(6))
    assert ours.tolist() == plain.tolist()
    options: dict[str, Any] = {"method": "speculative", "gamma": 3, "epsilon": 0.4, "padding": 8}
    assert ours_alone(target, drafts[name], **prompt(6), **options).tolist() == plain.tolist()


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "gpt_oss", "lfm2", "mamba2"])
def test_text_of_other_layers_is_that_of_transformers(kind: str) -> None:
    [family] = [family for family in EXACT if family.kind == kind]
    inputs = prompt(WINDOW - 2)
    plain, ours = both(family.model(), family.model(noise=0.02), **inputs)
    assert ours.tolist() == plain.tolist()


def test_plain_decoding_needs_no_draft(target: Model) -> None:
    inputs = prompt(5)
    plain = target.generate(**inputs, do_sample=False, max_new_tokens=20)
    ours = ours_alone(target, None, **inputs, method="autoregressive")
    assert ours.tolist() == plain.tolist()


@pytest.mark.parametrize("place", [0, 1, 8])
def test_text_ends_with_its_end_token(target: Model, drafts: Drafts, place: int) -> None:
    inputs = prompt(6)
    tokens = text_without_end(target, inputs)
    assert tokens.index(tokens[place]) == place
    for draft in drafts.values():
        plain, ours = both(target, draft, **inputs, eos_token_id=[tokens[place], VOCABULARY - 2])
        assert ours.tolist() == plain.tolist()
    assert plain.shape[1] == 6 + place + 1


END = 44  # both texts of the batch below come to it early
SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": END},
    "min_length": {"min_length": 20, "eos_token_id": END},
    "bad_words": {"bad_words_ids": [[31], [6, 11], [22]]},
    "suppress_tokens": {"suppress_tokens": list(range(0, VOCABULARY, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(VOCABULARY // 2, VOCABULARY))},
    "forced_eos": {"forced_eos_token_id": 11},
    "length_penalty": {"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": 22},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.0},
    "encoder_no_repeat": {"encoder_no_repeat_ngram_size": 1},
    # Allowed tokens depend on the row and on the place in the padded text.
    "prefix_allowed_tokens": {
        "prefix_allowed_tokens_fn": lambda row, ids: range((row + len(ids)) % 3, VOCABULARY, 3)
    },
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_mean_what_they_mean_to_transformers(
    target: Model, draft: Model, setting: str
) -> None:
    for inputs in (prompt(6), padded(4, 9)):
        settings = SETTINGS[setting]
        plain, ours = both(target, draft, **inputs, **settings)
        assert ours.tolist() == plain.tolist()
    end = settings.get("eos_token_id")
    without = target.generate(**inputs, do_sample=False, max_new_tokens=20, eos_token_id=end)
    assert without.tolist() != plain.tolist()  # the setting has an effect to get wrong


def test_a_processor_may_write_to_the_scores_it_is_given(target: Model, draft: Model) -> None:
    class Ban(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores[:, input_ids[0, -1]] = -torch.inf
            scores[:, :20] -= 5
            return scores

    plain, ours = both(target, draft, **prompt(6), logits_processor=LogitsProcessorList([Ban()]))
    assert ours.tolist() == plain.tolist()


def test_processors_are_never_asked_about_text_they_forbade(target: Model, draft: Model) -> None:
    def allowed(row: int, ids: Tensor) -> list[int]:
        for place, token in enumerate(ids.tolist()[6:]):
            if token not in (place + 1, place + 2):
                raise ValueError("this text is not in the grammar")
        return [len(ids) - 5, len(ids) - 4]

    plain, ours = both(target, draft, **prompt(6), prefix_allowed_tokens_fn=allowed)
    assert ours.tolist() == plain.tolist()


class Sees(StoppingCriteria):
    """Ends a text after any of some tokens; remembers what it was asked about."""

    def __init__(self, ends: set[int]) -> None:
        self.ends = ends
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        assert scores is None
        self.seen += input_ids.tolist()
        return torch.tensor([row[-1] in self.ends for row in input_ids.tolist()])


@pytest.mark.parametrize(("criterion_at", "end_at"), [(8, 11), (11, 8)])
def test_stopping_criteria_are_asked_after_every_token(
    target: Model, draft: Model, criterion_at: int, end_at: int
) -> None:
    inputs = prompt(6)
    tokens = text_without_end(target, inputs)
    plain_criterion, our_criterion = (Sees({tokens[criterion_at]}) for _ in range(2))
    arguments = inputs | {"do_sample": False, "eos_token_id": tokens[end_at], "max_new_tokens": 20}
    plain = target.generate(**arguments, stopping_criteria=[plain_criterion])
    ours = ours_alone(target, draft, **arguments, stopping_criteria=[our_criterion])
    assert ours.tolist() == plain.tolist()
    assert ours.shape[1] == 6 + min(criterion_at, end_at) + 1
    assert our_criterion.seen == plain_criterion.seen


def test_stop_strings_end_the_text(target: Model, draft: Model) -> None:
    # The criterion tokenizes "abcdef" to learn how the tokenizer joins words.
    words = {str(i): i for i in range(VOCABULARY)} | {"abcdef": VOCABULARY}
    word_level = Tokenizer(models.WordLevel(words, unk_token="abcdef"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_level)
    inputs = prompt(6)
    tokens = text_without_end(target, inputs)
    stop = f"{tokens[5]} {tokens[6]}"
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, [stop])])
    plain, ours = both(target, draft, **inputs, stopping_criteria=criteria)
    assert ours.tolist() == plain.tolist()
    assert ours.shape[1] == 6 + 7


@pytest.mark.parametrize("most", [3, 8, 13])
def test_the_callers_own_maximum_takes_precedence(target: Model, draft: Model, most: int) -> None:
    criteria = StoppingCriteriaList([MaxLengthCriteria(most)])
    plain, ours = both(target, draft, **prompt(6), stopping_criteria=criteria)
    assert ours.tolist() == plain.tolist()


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_max_length_and_the_default_length(target: Model, draft: Model) -> None:
    plain, ours = both(target, draft, **prompt(6), max_new_tokens=None, max_length=15)
    assert ours.tolist() == plain.tolist()
    plain, ours = both(target, draft, **prompt(6), max_new_tokens=None)
    assert ours.tolist() == plain.tolist()


def test_padded_batch_with_ends_at_different_places(target: Model, drafts: Drafts) -> None:
    inputs = padded(4, 11, 7, 1)
    apart = both(target, drafts["similar"], **inputs)[0][:, 11:]
    end = apart[0, 2].item()
    assert len({row.index(end) if end in row else -1 for row in apart.tolist()}) > 1
    for draft in drafts.values():
        plain, ours = both(target, draft, **inputs, eos_token_id=end, pad_token_id=0)
        assert ours.tolist() == plain.tolist()


def test_without_an_end_token_every_row_goes_on_until_all_are_done(
    target: Model, draft: Model
) -> None:
    inputs = padded(4, 9)
    texts = target.generate(**inputs, do_sample=False, max_new_tokens=20)[:, 9:].tolist()
    ends = {texts[0][3], texts[1][8]}
    stopped = [min(i for i, token in enumerate(text) if token in ends) for text in texts]
    assert stopped[0] != stopped[1]
    plain, ours = both(target, draft, **inputs, stopping_criteria=[Sees(ends)])
    assert ours.tolist() == plain.tolist()


def test_masked_tokens_inside_the_prompt_are_left_out(target: Model, draft: Model) -> None:
    inputs = prompt(9)
    inputs["attention_mask"][0, 3:5] = 0
    plain, ours = both(target, draft, **inputs)
    assert ours.tolist() == plain.tolist()


SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95}


def test_sampled_text_depends_on_the_seed_alone(target: Model, drafts: Drafts) -> None:
    texts = []
    for seed in (1, 2):
        found = set()
        ways: list[tuple[Model | None, dict[str, Any]]] = [
            (None, {"method": "autoregressive"}),
            (None, {"method": "lookup"}),
            (None, {"method": "lookahead"}),
            (drafts["similar"], {"method": "speculative", "gamma": 2}),
            *((draft, {}) for draft in drafts.values()),
        ]
        for draft, options in ways:
            torch.manual_seed(seed)
            out = ours_alone(target, draft, **prompt(6), **SAMPLING, **options)
            found.add(tuple(out[0].tolist()))
        assert len(found) == 1
        texts.append(found)
    assert texts[0] != texts[1]


def test_sampling_settings_are_applied_once(target: Model, draft: Model) -> None:
    inputs = prompt(6)
    llm = LLM.from_models(target, None)
    for seed in range(2):
        torch.manual_seed(seed)
        ours = ours_alone(target, draft, **inputs, **SAMPLING)
        torch.manual_seed(seed)
        params = SamplingParams(
            temperature=0.8, top_k=20, top_p=0.95, max_tokens=20, seed=_drawn_seed()
        )
        expected = llm.generate(inputs["input_ids"][0].tolist(), params)[0].outputs[0]
        assert ours[0, 6:].tolist() == expected.token_ids


def _drawn_seed() -> int:
    return int(torch.randint(2**63 - 1, (1,)))


def test_sampling_from_one_token_is_greedy(target: Model, draft: Model) -> None:
    plain = target.generate(**prompt(6), do_sample=False, max_new_tokens=20)
    ours = ours_alone(target, draft, **prompt(6), do_sample=True, top_k=1)
    assert ours.tolist() == plain.tolist()


def test_returned_sequences_and_rows_are_sampled_apart(target: Model, draft: Model) -> None:
    arguments = SAMPLING | {"num_return_sequences": 3, "max_new_tokens": 10}
    torch.manual_seed(3)
    ours = ours_alone(target, draft, **padded(4, 6), **arguments)
    assert ours.shape == (6, 16)
    assert ours[:, :6].tolist() == padded(4, 4, 4, 6, 6, 6)["input_ids"].tolist()
    assert len({tuple(row) for row in ours[:, 6:].tolist()}) == 6
    torch.manual_seed(3)
    again = ours_alone(target, draft, **padded(4, 6), **arguments)
    assert again.tolist() == ours.tolist()


def test_greedy_decoding_leaves_torchs_generator_alone(target: Model, draft: Model) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ours_alone(target, draft, **prompt(6), do_sample=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_streamer_is_given_what_transformers_would_give_it(target: Model, draft: Model) -> None:
    inputs = prompt(6) | {"eos_token_id": text_without_end(target, prompt(6))[8]}
    plain, ours, bound = (Recorder() for _ in range(3))
    target.generate(**inputs, do_sample=False, max_new_tokens=20, streamer=plain)
    ours_alone(target, draft, **inputs, token_streamer=ours)
    assert ours.calls == plain.calls
    # As a caller that hands `streamer` on, which has put the prompt itself.
    loop = partial(specbranch.generate, streamer=bound)
    ours_alone(target, draft, **inputs, custom_generate=loop)
    assert bound.calls == plain.calls[1:]


def test_returns_a_dict_if_asked_to(target: Model, draft: Model) -> None:
    plain, ours = both(target, draft, **prompt(6), return_dict_in_generate=True)
    assert type(ours) is type(plain)
    assert ours.sequences.tolist() == plain.sequences.tolist()
