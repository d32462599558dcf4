"""A draft that drafts only some tokens: the text stays the target's."""

import pytest
import torch

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.models.restricted_head import ENTRY, NEVER, RestrictedHead, restrict_head
from tests.tiny import VOCABULARY, save_pair_half, tiny_model, tiny_tokenizer

TOKENS = [1, 2, 3, 5, 8, 13, 21, 34, 55]


def test_listed_tokens_have_the_logits_of_the_whole_head():
    head = torch.nn.Linear(16, VOCABULARY, bias=False)
    hidden = torch.randn(2, 3, 16)
    logits = RestrictedHead(head, torch.tensor(TOKENS))(hidden)
    assert logits.shape == (2, 3, VOCABULARY)
    torch.testing.assert_close(logits[..., TOKENS], head(hidden)[..., TOKENS])
    others = [token for token in range(VOCABULARY) if token not in TOKENS]
    assert (logits[..., others] == NEVER).all()


def test_a_token_without_a_score_adds_nothing_to_the_entropy():
    logits = torch.full((1, 8), NEVER)
    logits[0, :2] = 0.0
    logs = logits.log_softmax(-1)
    assert -(logs.exp() * logs).sum() == pytest.approx(torch.tensor(2.0).log().item())


@pytest.mark.parametrize("method", ["specbranch", "pearl", "speculative", "adaedl"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_text_is_that_of_plain_decoding(method, temperature):
    target, draft = tiny_model("llama"), tiny_model("llama")
    draft.set_output_embeddings(RestrictedHead(draft.lm_head, torch.tensor(TOKENS)))
    llm = LLM.from_models(target, draft, speculate="always")
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=3, ignore_eos=True)
    [ours] = llm.generate([[1, 2, 3]], params, method=method)
    [plain] = llm.generate([[1, 2, 3]], params, method="autoregressive")
    assert ours.outputs[0].token_ids == plain.outputs[0].token_ids
    assert llm.draft.drafted == len(TOKENS)


def test_rejection_takes_a_draft_that_never_says_some_tokens():
    # Where the draft has all of its mass on one token, the residual gives back all the others.
    target, draft = tiny_model("llama"), tiny_model("llama")
    draft.set_output_embeddings(RestrictedHead(draft.lm_head, torch.tensor([1])))
    llm = LLM.from_models(target, draft, speculate="always", gamma=2)
    params = SamplingParams(
        max_tokens=60, temperature=1.0, seed=1, acceptance="rejection", ignore_eos=True
    )
    [out] = llm.generate([[1, 2, 3]], params, method="speculative")
    assert len(set(out.outputs[0].token_ids) - {1}) > 5


def test_only_a_draft_is_restricted(tmp_path):
    model = tiny_model("llama")
    setattr(model.config, ENTRY, TOKENS)
    name = save_pair_half(tmp_path / "model", model, tiny_tokenizer())
    with LLM(name, name, executor="inline", speculate="always") as llm:
        assert llm.draft.drafted == len(TOKENS)
        assert llm.target.drafted is None
        [ours] = llm.generate("w1 w2", SamplingParams(max_tokens=30, ignore_eos=True))
    whole = LLM.from_models(tiny_model("llama"), None)
    [expected] = whole.generate([[1, 2]], SamplingParams(max_tokens=30, ignore_eos=True))
    assert ours.outputs[0].token_ids == expected.outputs[0].token_ids
    assert set(ours.outputs[0].token_ids) - set(TOKENS)


@pytest.mark.parametrize("wrong", [[], [1, 64], [-1], ["w1"], "1 2", [True]])
def test_what_are_no_tokens_is_refused(wrong):
    model = tiny_model("llama")
    setattr(model.config, ENTRY, wrong)
    with pytest.raises(InputError, match="must be token ids between 0 and 63"):
        restrict_head(model, "mine")


def test_a_head_with_biases_is_not_restricted():
    model = tiny_model("llama")
    model.set_output_embeddings(torch.nn.Linear(32, VOCABULARY))
    setattr(model.config, ENTRY, TOKENS)
    with pytest.raises(InputError, match="biases"):
        restrict_head(model, "mine")
