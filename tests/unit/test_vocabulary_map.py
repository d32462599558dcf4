"""Drafts with another tokenizer: the map, the runner behind it, and exact acceptance."""

import logging
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from specbranch import LLM, SamplingParams
from specbranch.config import SpeculativeConfig
from specbranch.errors import InputError
from specbranch.methods.registry import METHODS
from specbranch.models.loader import load_tokenizer
from specbranch.models.restricted_head import NEVER
from specbranch.models.runner import CausalRunner
from specbranch.models.translated_runner import TranslatedRunner
from specbranch.models.vocabularies import same_ids
from specbranch.models.vocabulary_map import VocabularyMap
from specbranch.workers import drafter as draft_worker
from specbranch.workers import verifier as target_worker
from tests.tables import TableRunner, decode, imitation, random_table
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer
from tests.unit.test_rejection import Enumerator, exact_distribution

METHODS_WITH_DRAFT = sorted(name for name, spec in METHODS.items() if spec.needs_draft)
# The target's six tokens to the draft's five: two are spelled by several, one is like another.
MAP = VocabularyMap(
    [[3], [0], [1, 4], [4], [2, 2, 0], [0]], torch.tensor([0, 1, 3]), torch.tensor([3, 0, 4]), [1]
)


def byte_level(corpus, size, bos=None, special=()):
    """A byte-level BPE tokenizer of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>", *special], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token=bos)


class Reference:
    """A path is its tokens; logits are looked up after all of them are spelled anew."""

    def __init__(self, table):
        self.table = table

    def __call__(self, path):
        spelled = [*MAP.start, *(i for token in path for i in MAP.reads[token])]
        row = torch.full((6,), NEVER)
        row[MAP.shared_target] = self.table(tuple(spelled))[MAP.shared_draft]
        return row


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_use_of_the_runner_gives_the_logits_of_the_text_spelled_anew(data):
    table = random_table(3, 5)
    runner, expected = TranslatedRunner(TableRunner(table, 5), MAP), Reference(table)
    token = st.integers(0, 5)
    prefix = data.draw(st.lists(token, min_size=1, max_size=4))
    runner.open(1, 100)
    runner.prefill(1, prefix)
    for _ in range(data.draw(st.integers(1, 5))):
        assert runner.length(1) == len(prefix)
        action = data.draw(st.sampled_from(["run", "rewind", "branch"]))
        if action == "run":
            new = data.draw(st.lists(token, min_size=1, max_size=3))
            [rows] = runner.run_many([(1, new)])
            for row in rows:
                prefix.append(new.pop(0))
                assert torch.equal(row, expected(prefix))
        elif action == "rewind":
            prefix = prefix[: data.draw(st.integers(0, len(prefix)))]
            runner.rewind(1, len(prefix))
        else:
            places = data.draw(st.lists(st.integers(0, len(prefix)), min_size=1, max_size=3))
            paths = {b: prefix[:n] for b, n in zip(runner.fork(1, places), places, strict=True)}
            for _ in range(data.draw(st.integers(1, 3))):
                growing = data.draw(st.sets(st.sampled_from(sorted(paths)), min_size=1))
                step = {branch: data.draw(token) for branch in sorted(growing)}
                [rows] = runner.step_many([(1, step)])
                for row, (branch, said) in zip(rows, step.items(), strict=True):
                    paths[branch] = [*paths[branch], said]
                    assert torch.equal(row, expected(paths[branch]))
            kept = data.draw(st.sampled_from(sorted(paths)))
            runner.keep(1, kept)
            prefix = paths[kept]
    runner.close(1)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_text_that_takes_more_than_its_share_of_draft_tokens_is_an_error(compiled):
    """The engine goes on without the draft; nothing is written beyond the cache."""
    model = CausalRunner(tiny_model("llama"))
    if compiled:  # which checks no bounds, and must not be called
        model._compiled = lambda *args: pytest.fail("written beyond the cache")
    long = VocabularyMap([[1, 2, 3]] * 64, torch.tensor([0]), torch.tensor([0]))
    runner = TranslatedRunner(model, long)
    runner.open(1, 8)
    with pytest.raises(ValueError, match="the cache holds 16 tokens"):
        runner.run_many([(1, [5] * 8)])


@pytest.mark.parametrize("method", METHODS_WITH_DRAFT)
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=40),
        SamplingParams(max_tokens=40, temperature=0.9, seed=3, acceptance="coupled"),
    ],
)
def test_text_is_that_of_plain_decoding(method, params):
    target, draft = random_table(5, 6), random_table(6, 5)
    for whims in (None, 1, 2):
        plain = decode("autoregressive", target, draft, 6, params)
        ours = decode(
            method, target, draft, 6, params, draft_vocabulary=5, translation=MAP, whims=whims
        )
        assert ours.text.tokens == plain.text.tokens


@pytest.mark.parametrize("method", ["speculative", "pearl", "specbranch"])
def test_enumeration_of_all_draws_gives_the_targets_distribution(monkeypatch, method):
    enumerator = Enumerator()
    for module in (draft_worker, target_worker):
        monkeypatch.setattr(module, "make_sampler", lambda params: enumerator)
    # The draft lacks the target's last token, and spells it by two of its own.
    shared = torch.tensor([0, 1]), torch.tensor([2, 0])
    translation = VocabularyMap([[2], [0], [0, 1]], *shared)
    target = random_table(7, 3, scale=1.0)
    draft = imitation(random_table(8, 3), 9, 3, noise=1.0)
    params = SamplingParams(temperature=0.9, seed=0, max_tokens=3, acceptance="rejection")
    options = SpeculativeConfig(2, 0.0, 2, "outcomes", retrieval=False)
    found, going = defaultdict(float), True
    while going:
        done = decode(
            method,
            target,
            draft,
            3,
            params,
            options,
            draft_vocabulary=3,
            translation=translation,
        )
        found[tuple(done.text.tokens)] += enumerator.weight
        going = enumerator.next_run()
    assert len(found) == 27
    assert found == pytest.approx(exact_distribution(target, 3, 3, 0.9), abs=1e-6)


def test_every_token_of_a_target_is_spelled_by_its_draft():
    target = load_tokenizer("target")
    corpus = ["the city of the river is the city", "def sort(xs): return sorted(xs)", "Ünïcode 🙂"]
    draft = byte_level(corpus, 400, bos="<end>")
    found = VocabularyMap.of(target, draft)
    assert len(found.reads) == len(target)
    ours, theirs = found.shared_target.tolist(), found.shared_draft.tolist()
    assert len(set(ours)) == len(set(theirs)) == len(ours) > 200
    assert dict(zip(ours, theirs, strict=True))[target.eos_token_id] == draft.eos_token_id
    for text in ("the city of the river", "def sort(xs):\n    return sorted(xs)", "is Ünïcode"):
        ids = target(text, add_special_tokens=False)["input_ids"]
        assert draft.decode([i for t in ids for i in found.reads[t]]) == text
    for i, own in zip(ours, theirs, strict=True):
        assert list(found.reads[i]) == [own]


def test_a_tokenizer_that_begins_every_text_begins_the_drafts():
    plain = tiny_tokenizer()
    begins = load_tokenizer("target")
    assert begins("a")["input_ids"][0] == begins.bos_token_id
    corpus = ["the city of the river"]
    assert VocabularyMap.of(byte_level(corpus, 300), begins).start == [begins.bos_token_id]
    assert VocabularyMap.of(begins, begins).start == []
    assert VocabularyMap.of(plain, plain).start == []


def test_ids_that_mean_the_same_need_no_map():
    assert same_ids(tiny_tokenizer(), tiny_tokenizer())
    assert same_ids(tiny_tokenizer(), tiny_tokenizer(size=70))  # one may have more
    assert same_ids(tiny_tokenizer(), tiny_tokenizer(size=60))
    assert not same_ids(tiny_tokenizer(), tiny_tokenizer("v"))


def shuffled(target):
    """The same model and words under other ids."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    draft = tiny_model("llama", seed=3)
    draft.load_state_dict(target.state_dict())
    with torch.no_grad():
        for name in ("get_input_embeddings", "get_output_embeddings"):
            weight = getattr(draft, name)().weight
            weight.copy_(getattr(target, name)().weight[order])
    words = {f"w{old}": new for new, old in enumerate(order.tolist())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return draft, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0")


@pytest.mark.parametrize("executor", ["inline", "process"])
def test_the_same_model_under_other_ids_drafts_what_its_target_says(tmp_path, caplog, executor):
    target = tiny_model("llama", seed=3)
    names = [
        save_pair_half(tmp_path / "target", target, tiny_tokenizer()),
        save_pair_half(tmp_path / "draft", *shuffled(target)),
    ]
    params = SamplingParams(max_tokens=48, ignore_eos=True)
    with (
        caplog.at_level(logging.WARNING),
        LLM(*names, executor=executor, speculate="always", gamma=4) as llm,
    ):
        assert llm.draft.drafted == 64
        [ours] = llm.generate("w5 w6 w7", params, method="speculative")
        [plain] = llm.generate("w5 w6 w7", params, method="autoregressive")
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    assert ours.metrics.mean_accepted_length > 4
    assert "drafts the 64 of 64 tokens that both have" in caplog.text


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="no token in common: choose another draft"):
        VocabularyMap.of(tiny_tokenizer(), tiny_tokenizer("v"))
