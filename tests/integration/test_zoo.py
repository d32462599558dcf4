"""The recipe on a toy corpus: resuming changes nothing, and what it writes loads."""

import json

import pytest
import torch

from specbranch.errors import InputError
from specbranch.training.pair import corpus, distill, train
from specbranch.training.pair.fit import Limit, fit, muon_and_adamw
from specbranch.training.pair.muon import orthogonalize


@pytest.fixture(scope="module")
def toy_corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        {"question": f"How much is {i} + {i}?", "answer": f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}"}
        for i in range(60)
    ]
    (folder / "math.jsonl").write_text("\n".join(map(json.dumps, rows)))
    news = [{"turns": [f"Summarize: on day {i} the council met again. " * 8]} for i in range(60)]
    (folder / "news.jsonl").write_text("\n".join(map(json.dumps, news)))
    articles = "".join(f"\n = Town {i} = \n{'A town by a river . ' * 20}" for i in range(60))
    (folder / "wiki.txt").write_text(articles)
    return folder


@pytest.fixture(scope="module")
def small_code(toy_corpus):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "CODE_BYTES", 150_000)
        patch.setattr(corpus, "CODE_PACKAGES", ())
        yield


@pytest.mark.usefixtures("small_code")
def test_documents_by_domain(toy_corpus, tmp_path):
    docs = corpus.documents(toy_corpus)
    assert set(docs) == set(corpus.DOMAINS)
    assert len(docs["math"]) == len(docs["news"]) == 60
    # Calculator marks are gone, the answer stays.
    assert any(text.endswith("Answer: 7 + 7 = 14") for text in docs["math"])
    with pytest.raises(InputError, match="does not exist"):
        corpus.documents(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no document of the domain 'math'"):
        corpus.documents(tmp_path)


@pytest.mark.usefixtures("small_code")
def test_batches_depend_on_the_step_alone_and_skip_held_out_text(toy_corpus):
    docs = corpus.documents(toy_corpus)
    tokenizer = corpus.train_tokenizer(docs, 400)
    corpus.start_with_end_of_text(tokenizer)
    assert tokenizer.encode("x").ids[0] == 0
    weights = {"math": 0.5, "news": 0.5}
    streams, again = (corpus.TokenStreams(docs, tokenizer, 1) for _ in range(2))
    assert torch.equal(streams.batch(7, 3, 20, weights), again.batch(7, 3, 20, weights))
    assert not torch.equal(streams.batch(7, 3, 20, weights), streams.batch(8, 3, 20, weights))
    held_out = tokenizer.decode(streams.held_out["math"].tolist())
    trained = tokenizer.decode(streams.train["math"].tolist())
    assert held_out.count("Question") == 2
    assert trained.count("Question") == 58
    starts = streams.batch(0, 4, 10, {"math": 1.0}, at_starts=1.0)
    assert starts[:, 0].tolist() == [0] * 4


def test_orthogonalize_makes_singular_values_alike():
    for shape in ((8, 20), (20, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert 0.5 < values.min() < values.max() < 1.3


def test_an_interrupted_fit_resumes_to_the_same_weights(tmp_path):
    def trained(checkpoint, interrupt_at=None):
        torch.manual_seed(0)
        model = train.new_model(64, 1, 2)

        def loss(step):
            if step == interrupt_at:
                raise KeyboardInterrupt
            generator = torch.Generator().manual_seed(step)
            batch = torch.randint(0, 50, (2, 9), generator=generator)
            return model(batch, labels=batch).loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("specbranch.training.pair.fit.CHECKPOINT_SECONDS", 0)
            optimizers = muon_and_adamw(model, 0.01)
            fit(model, loss, optimizers, Limit(6), checkpoint, "toy")
        return model.state_dict()

    whole = trained(tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b.pt", interrupt_at=3)
    resumed = trained(tmp_path / "b.pt")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_stacking_repeats_every_layer():
    model = train.new_model(64, 2, 2)
    deeper = train.stacked(model)
    assert deeper.config.num_hidden_layers == 4
    for old, new in ((0, 0), (0, 1), (1, 2), (1, 3)):
        weights = (m.model.layers[i].mlp.up_proj.weight for m, i in ((model, old), (deeper, new)))
        assert torch.equal(*weights)


@pytest.mark.usefixtures("small_code")
def test_the_recipe_writes_a_pair_that_loads(toy_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "VOCABULARY", 400)
    monkeypatch.setattr(train, "CONTEXT", 192)
    monkeypatch.setattr(distill, "SHAPES", ((32, 2),))
    monkeypatch.setattr(train, "new_model", lambda w, n, h, make=train.new_model: make(64, n, 2))
    arguments = ["--corpus", str(toy_corpus), "--out", str(tmp_path), "--target-tokens"]
    arguments += ["3072", "3072", "768", "--draft-weak-tokens", "6144", "--chunks", "2"]
    arguments += ["--draft-tokens", "3072"]
    assert train.main(arguments) == 0

    from specbranch import LLM, SamplingParams

    for draft in ("draft", "draft-weak"):
        with LLM(str(tmp_path / "target"), str(tmp_path / draft)) as llm:
            outputs = [
                llm.generate("def f", SamplingParams(max_tokens=8), method=m)[0].outputs[0]
                for m in ("autoregressive", "specbranch")
            ]
            assert outputs[0].token_ids == outputs[1].token_ids
    capsys.readouterr()
    assert train.main(arguments) == 0
    assert capsys.readouterr().out.count("already in") == 3
    assert train.main(["--corpus", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
