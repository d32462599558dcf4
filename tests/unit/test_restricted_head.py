"""A draft that drafts only some tokens: the text stays the target's."""

import json

import pytest
import torch

from specbranch import LLM, SamplingParams
from specbranch.errors import InputError
from specbranch.models.restricted_head import FILE, NEVER, RestrictedHead, restrict_head
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


def test_the_file_beside_the_weights_is_read_and_checked(tmp_path):
    folder = tmp_path / "draft"
    save_pair_half(folder, tiny_model("llama"), tiny_tokenizer())
    (folder / FILE).write_text(json.dumps({"token_ids": TOKENS}))
    save_pair_half(tmp_path / "target", tiny_model("llama"), tiny_tokenizer())
    with LLM(str(tmp_path / "target"), str(folder), executor="inline") as llm:
        assert llm.draft.drafted == len(TOKENS)
    for broken in ("[]", "{", '{"token_ids": [1, 64]}', '{"token_ids": []}'):
        (folder / FILE).write_text(broken)
        with pytest.raises(InputError, match=r"draft\.json"):
            restrict_head(tiny_model("llama"), folder)
