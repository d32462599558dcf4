"""Drafts for any target: answers, untrained models, training, and what a report computes."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specbranch import LLM, SamplingParams
from specbranch.cli import main
from specbranch.errors import InputError
from specbranch.executors.latency_profile import ModelLatency
from specbranch.training.draft import make
from specbranch.training.draft.answers import (
    Answer,
    AnswerStore,
    Likeliest,
    answer_batch,
    self_prompts,
    write_answers,
)
from specbranch.training.draft.make import DraftRecipe, make_draft
from specbranch.training.draft.report import BreakEven, accepted_length, sequential_gain
from specbranch.training.draft.student import from_layers, narrow
from specbranch.training.draft.train import (
    BATCH_TOKENS,
    AnswerLoss,
    agreement,
    batches,
    frequent_tokens,
    train_draft,
)
from tests.tiny import ARCHITECTURES, save_pair_half, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]]


def written(*tokens, prompt_length):
    """An answer whose target was sure of every token of it."""
    ids = np.array(tokens, dtype=np.int32)
    likeliest = Likeliest(ids[prompt_length:, None], np.zeros((len(ids) - prompt_length, 1), "f2"))
    return Answer(ids, prompt_length, likeliest)


def test_answers_of_a_batch_are_those_of_each_prompt_alone():
    target = tiny_model("llama")
    together = answer_batch(target, PROMPTS, 12)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        [alone] = answer_batch(target, [prompt], 12)
        assert answer.tokens.tolist() == alone.tokens.tolist()
        assert answer.tokens[: answer.prompt_length].tolist() == prompt
        llm = LLM.from_models(target, None)
        [out] = llm.generate([prompt], SamplingParams(max_tokens=12))
        assert out.outputs[0].token_ids == answer.tokens[answer.prompt_length :].tolist()


def test_an_interrupted_run_goes_on_with_the_next_batch(tmp_path):
    target = tiny_model("llama")
    whole, parts = AnswerStore(tmp_path / "a"), AnswerStore(tmp_path / "b")
    write = partial(write_answers, target, PROMPTS * 20, max_tokens=4)
    write(store=whole, seconds=1e6)
    ticks = iter([0.0, 100.0])  # the time is up after the first batch
    write(store=parts, seconds=50, clock=lambda: next(ticks))
    assert len(parts.chunks()) == 1
    assert parts.seconds == 100
    write(store=parts, seconds=50)  # the time that was spent counts
    assert len(parts.chunks()) == 1
    write(store=parts, seconds=1e6)
    assert [file.name for file in parts.chunks()] == [file.name for file in whole.chunks()]
    for ours, theirs in zip(parts.chunks(), whole.chunks(), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_held_out_answers_are_greedy_and_not_trained_on(tmp_path):
    store = AnswerStore(tmp_path)
    for number in range(6):
        answer = written(number, 1, 2, prompt_length=1)
        store.add([answer], greedy=number % 2 == 1)
    train, held_out = store.split()
    assert [int(answer.tokens[0]) for answer in held_out] == [1]
    assert sorted(int(answer.tokens[0]) for answer in train) == [0, 2, 3, 4, 5]
    with pytest.raises(InputError, match="too few answers"):
        AnswerStore(tmp_path / "empty").split()


def test_a_target_writes_prompts_itself(tmp_path):
    target, tokenizer = tiny_model("llama"), tiny_tokenizer()
    first = self_prompts(target, tokenizer, 5, tmp_path / "prompts.json")
    assert len(first) == 5
    assert self_prompts(target, tokenizer, 5, tmp_path / "prompts.json") == first


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_layers_make_the_target_itself(architecture):
    target = tiny_model(architecture, num_hidden_layers=3)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        torch.testing.assert_close(from_layers(target, [0, 1, 2])(ids).logits, target(ids).logits)
        assert from_layers(target, [0, 2]).config.num_hidden_layers == 2
    with pytest.raises(InputError, match="layers 0 to 2, and none 3"):
        from_layers(target, [0, 3])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_narrow_draft_has_about_the_asked_size(architecture):
    target = (
        tiny_model(architecture, hidden_size=128, num_hidden_layers=3, head_dim=32)
        if architecture in ("qwen3", "gemma")
        else tiny_model(architecture, hidden_size=128)
    )
    draft = narrow(target, 80_000, layers=1)
    assert draft.num_parameters() <= 84_000
    assert draft.config.hidden_size < 128
    assert draft(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)
    with pytest.raises(InputError, match="give --size"):
        narrow(target, 100)


def test_a_projected_embedding_keeps_what_the_targets_tells_apart():
    target = tiny_model("llama", hidden_size=128)
    with torch.no_grad():  # tokens that differ in 32 directions only
        low = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        target.get_input_embeddings().weight.copy_(low @ torch.randn(32, 128))
    draft = narrow(target, 40_000, layers=1)
    ours, theirs = (m.get_input_embeddings().weight.detach() for m in (draft, target))
    similar = [torch.corrcoef(table - table.mean(0)).flatten() for table in (ours, theirs)]
    assert torch.corrcoef(torch.stack(similar))[0, 1] > 0.95


@given(st.lists(st.integers(2, 900), min_size=1, max_size=80), st.integers(0, 5))
def test_batches_hold_every_answer_once_and_fit(lengths, seed):
    answers = [written(*[0] * length, prompt_length=1) for length in lengths]
    made = batches(answers, seed)
    assert sorted(id(a) for batch in made for a in batch) == sorted(map(id, answers))
    for batch in made:
        assert len(batch) * max(len(a.tokens) for a in batch) <= BATCH_TOKENS


def test_the_loss_is_the_cross_entropy_of_what_was_written():
    draft = tiny_model("llama")
    answers = [
        written(1, 2, 3, 4, 5, prompt_length=2),
        written(6, 7, 8, prompt_length=1),
    ]
    loss = AnswerLoss(draft, answers, None)(0)
    expected = []
    for answer in answers:
        ids = torch.from_numpy(answer.tokens).long()[None]
        logs = draft(ids).logits[0].log_softmax(-1)
        expected += [-logs[i - 1, ids[0, i]] for i in range(answer.prompt_length, ids.shape[1])]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_what_the_target_thought_likely_is_its_own_distribution(tmp_path):
    target = tiny_model("llama")
    store = AnswerStore(tmp_path)
    for temperature in (0.0, 1.0):
        store.add(answer_batch(target, PROMPTS, 12, temperature), greedy=temperature == 0)
    sampled, greedy = store.split()
    for answer in [*greedy, *sampled]:
        ids = torch.from_numpy(answer.tokens).long()[None]
        logs = target(ids).logits[0, answer.prompt_length - 1 : -1].log_softmax(-1)
        tokens = torch.from_numpy(answer.likeliest.tokens).long()
        chances = torch.from_numpy(answer.likeliest.log_chances).float()
        torch.testing.assert_close(logs.gather(1, tokens), chances, atol=5e-3, rtol=0)
        assert torch.equal(tokens, logs.topk(32).indices)
    assert all((a.likeliest.tokens[:, 0] == a.tokens[a.prompt_length :]).all() for a in greedy)


def test_the_target_itself_loses_only_what_its_chances_scatter():
    target = tiny_model("llama")
    [answer] = answer_batch(target, PROMPTS[:1], 12)
    kept = torch.arange(0, 64, 2)  # of which chances are shared out among those that are likely
    tokens = torch.from_numpy(answer.likeliest.tokens).long()
    chances = torch.from_numpy(answer.likeliest.log_chances).float().exp() * (tokens % 2 == 0)
    chances /= chances.sum(-1, keepdim=True)
    ids = torch.from_numpy(answer.tokens).long()[None]
    logits = target(ids).logits[0, answer.prompt_length - 1 : -1]
    logs = logits[:, kept].log_softmax(-1).gather(1, tokens // 2)
    expected = -(chances * logs).sum(-1).mean()
    torch.testing.assert_close(AnswerLoss(target, [answer], kept)(0), expected)


def test_a_token_that_cannot_be_drafted_is_a_miss():
    target = tiny_model("llama")
    answers = answer_batch(target, PROMPTS, 30)
    assert agreement(AnswerLoss(target, answers, None), answers) == 1.0
    counts = np.bincount(np.concatenate([a.tokens[a.prompt_length :] for a in answers]))
    tokens = frequent_tokens(answers, 64, 3)
    assert sorted(counts[tokens].tolist()) == sorted(counts.tolist())[-3:]
    found = agreement(AnswerLoss(target, answers, tokens), answers)
    assert found == pytest.approx(counts[tokens].sum() / counts.sum())


def test_training_brings_a_draft_nearer_to_its_target(tmp_path):
    target = tiny_model("llama")
    prompts = [[a, b] for a in range(8) for b in range(8)]
    answers = answer_batch(target, prompts, 16)
    draft = tiny_model("llama", seed=1)
    before = agreement(AnswerLoss(draft, answers, None), answers)
    after = train_draft(
        draft, answers, answers[:16], None, 6.0, tmp_path / "checkpoint.pt", False, 3e-3
    )
    assert after > before + 0.2
    frozen = tiny_model("llama", seed=1)
    table = frozen.get_input_embeddings().weight.clone()
    train_draft(frozen, answers, answers[:16], None, 0.5, tmp_path / "b" / "c.pt", True)
    assert torch.equal(frozen.get_input_embeddings().weight, table)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9))
def test_accepted_length_is_between_one_and_a_full_chain(right, gamma):
    found = accepted_length(torch.tensor(right), gamma)
    assert 0 < found <= gamma + 1
    if not any(right):
        assert found == 1.0


def test_gains_are_those_of_the_formula():
    target, draft = ModelLatency({1: 10.0, 16: 10.0}), ModelLatency({1: 1.0})
    alpha, gamma = 0.8, 4
    tokens = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    assert sequential_gain(alpha, gamma, target, draft) == pytest.approx(tokens * 10 / 14)
    even = BreakEven.of(alpha, target, draft)
    # One drafted token pays if (1 + a) 10 / 11 > 1.
    assert even.alpha == pytest.approx(0.11, abs=0.011)
    assert even.gain > 1
    dear = ModelLatency({1: 20.0})
    assert BreakEven.of(0.5, target, dear).alpha > 1
    assert math.isfinite(BreakEven.of(1.0, target, draft).gain)


def test_make_writes_a_folder_that_decodes_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make, "HRAD_PROMPTS", 2)
    target = save_pair_half(tmp_path / "target", tiny_model("llama"), tiny_tokenizer())
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"w{a} w{b}"} for a in range(1, 9) for b in range(1, 9)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "draft"
    command = ["draft", "make", "--target", target, "--out", str(out), "--prompts", str(prompts)]
    command += ["--from-layers", "0", "--max-tokens", "16", "--vocabulary", "40"]
    assert main([*command, "--minutes", "0.05"]) == 0
    assert "agreement with answers that it had not seen: " in capsys.readouterr().out
    assert "specbranch draft report" in (out / "README.md").read_text()
    with LLM(target, str(out), executor="inline", speculate="always") as llm:
        assert llm.draft.drafted <= 40
        [ours] = llm.generate("w1 w2", SamplingParams(max_tokens=30))
        [plain] = llm.generate("w1 w2", SamplingParams(max_tokens=30), method="autoregressive")
        assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    assert main([*command, "--minutes", "0.05"]) == 0  # all of it is there already


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--size", "15M", "--from-layers", "0"], "give one of"),
        (["--size", "many"], "--size is a number of parameters"),
        (["--from-layers", "0;1"], "--from-layers is a list"),
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--from-layers", "7"], "layers 0 to 1, and none 7"),
    ],
)
def test_what_cannot_be_made_is_refused(model_folder, tmp_path, given, expected, capsys):
    command = ["draft", "make", "--target", str(model_folder), "--out", str(tmp_path / "out")]
    assert main([*command, *given]) == 2
    assert expected in capsys.readouterr().err


def test_an_existing_draft_is_trained_on_with_all_of_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "HRAD_PROMPTS", 1)
    target = save_pair_half(tmp_path / "target", tiny_model("llama"), tiny_tokenizer())
    former = tiny_model("llama", seed=1)
    former.config.draft_token_ids = [1, 2, 3]
    init = save_pair_half(tmp_path / "former", former, tiny_tokenizer())
    recipe = DraftRecipe(
        target, tmp_path / "draft", init=init, minutes=0.05, max_tokens=16, vocabulary=0
    )
    make_draft(recipe, [f"w{a} w{b}" for a in range(1, 9) for b in range(1, 9)])
    with LLM(target, str(recipe.out), executor="inline") as llm:
        assert llm.draft.drafted is None
        assert llm.draft.vocabulary == 64
