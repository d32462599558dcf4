"""H-RAD offline: records of texts, training on records made by hand, baselines, files, refusals."""

import json
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from specbranch.cli import main
from specbranch.config import SpeculativeConfig
from specbranch.errors import ExecutorError, InputError
from specbranch.llm import LLM
from specbranch.policy.hrad import HRAD
from specbranch.sampling_params import SamplingParams
from specbranch.training.hrad import baselines
from specbranch.training.hrad.collect import Prompt, collect, record
from specbranch.training.hrad.records import Collection, RecordingSetup, manifest
from specbranch.workers.drafter import Drafter
from specbranch.workers.verifier import Verifier
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer

GAMMA, LAYERS = 3, 2
PROMPTS = [Prompt([5, 6, 7 + i], "p.jsonl") for i in range(6)]
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def pair():
    """A tiny target and a draft that is the same but for some noise: it is right now and then."""
    target, draft = tiny_model("llama"), tiny_model("llama")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
    with LLM.from_models(target, draft) as llm:
        yield llm, target


def collection(llm, folder, params=GREEDY, **changes):
    setting = replace(RecordingSetup.of(llm.target, llm.draft, GAMMA, LAYERS), **changes)
    return Collection(folder, manifest(setting, params))


# Records of texts


def test_a_record_is_of_the_round_after_its_features(pair):
    llm, target = pair
    found = record(llm, [5, 6, 7], GREEDY, GAMMA, LAYERS)
    gamma = SpeculativeConfig(GAMMA)
    [output] = llm.generate([[5, 6, 7]], GREEDY, method="speculative", config=gamma)
    rounds, text = output.rounds, [5, 6, 7, *output.outputs[0].token_ids]
    ends = list(accumulate((len(done.tokens) for done in rounds), initial=3))
    full = [i for i, done in enumerate(rounds) if i and done.chain == GAMMA]
    assert len(found) == len(full) >= 8
    assert len({r.accepted for r in found}) >= 3
    for ours, i in zip(found, full, strict=True):
        assert ours.accepted == rounds[i].accepted
        assert len(ours.confidences) == GAMMA
        with torch.inference_mode():
            out = target(torch.tensor([text[: ends[i] - 1]]), output_hidden_states=True)
            newest = target.get_input_embeddings()(torch.tensor(text[ends[i] - 1]))
        z = torch.cat([*(h[0, -1] for h in out.hidden_states[-LAYERS:]), newest])
        torch.testing.assert_close(ours.z, z, atol=1e-4, rtol=1e-4)


def test_rounds_without_room_leave_no_record(pair):
    llm, _ = pair
    short = replace(GREEDY, max_tokens=GAMMA)
    assert record(llm, [5, 6, 7], short, GAMMA, LAYERS) == []


def test_a_lost_draft_is_no_end_of_a_text(pair, monkeypatch):
    _, target = pair
    with LLM.from_models(target, tiny_model("llama")) as llm:
        monkeypatch.setattr(Drafter, "draft", dies)
        with pytest.raises(ExecutorError, match="the draft executor was lost"):
            record(llm, [5, 6, 7], GREEDY, GAMMA, LAYERS)


def dies(*arguments):
    raise ExecutorError("draft", "died")


def test_an_interrupted_collection_goes_on_where_it_was(pair, tmp_path, monkeypatch):
    llm, _ = pair
    whole, parts = collection(llm, tmp_path / "whole"), collection(llm, tmp_path / "parts")
    collect(llm, PROMPTS, GREEDY, whole)
    started, make_request = [], llm.engine.make_request

    def interrupted(prompt, params, **more):
        started.append(prompt)
        if len(started) == 4:
            raise KeyboardInterrupt
        return make_request(prompt, params, **more)

    monkeypatch.setattr(llm.engine, "make_request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(llm, PROMPTS, GREEDY, parts)
    assert len(list(parts.folder.glob("*.safetensors"))) == 3
    collect(llm, PROMPTS, GREEDY, collection(llm, tmp_path / "parts"))
    assert started == [p.ids for p in [*PROMPTS[:4], *PROMPTS[3:]]]
    (ours, sources), (theirs, _) = parts.load(), whole.load()
    assert sources == ["p.jsonl"] * len(PROMPTS)
    assert len(ours) == len(theirs) > 40
    for name in ("z", "confidences", "offered", "accepted", "prompts"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_collection_takes_only_its_own_kind(pair, tmp_path):
    llm, _ = pair
    collection(llm, tmp_path / "r")
    collection(llm, tmp_path / "r", target="another name of the same weights")
    for changes, complaint in [
        ({"gamma": 4}, r"other records \(gamma 3 there and 4 here\)"),
        ({"draft_fingerprint": "x"}, "draft_fingerprint .* there and x here"),
        ({"params": replace(GREEDY, temperature=0.5, seed=1)}, "temperature 0.0 there and 0.5 h"),
    ]:
        with pytest.raises(InputError, match=complaint):
            collection(llm, tmp_path / "r", **changes)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match="holds something else"):
        collection(llm, tmp_path / "full")
    with pytest.raises(InputError, match="holds no records"):
        Collection(tmp_path / "r").load()
    (tmp_path / "r/0.safetensors").write_text("x")
    with pytest.raises(InputError, match="is damaged"):
        Collection(tmp_path / "r").load()
    with pytest.raises(InputError, match="layers must be 2 or fewer, not 3"):
        RecordingSetup.of(llm.target, llm.draft, GAMMA, 3)


# Records made by hand


# The predictor


def test_a_predictor_is_for_one_pair_and_one_gamma(pair):
    llm, _ = pair
    model = HRAD(RecordingSetup.of(llm.target, llm.draft, GAMMA, LAYERS))
    model.check(llm.target, llm.draft)
    model.check(replace(llm.target, name="a copy"), llm.draft, GAMMA)
    with pytest.raises(InputError, match="is for gamma 3, not 4"):
        model.check(llm.target, llm.draft, 4)
    other = replace(llm.draft, name="other", fingerprint="x")
    with pytest.raises(InputError, match="for target with draft, not for target with other"):
        model.check(llm.target, other)


# The commands


def test_from_prompts_to_a_predictor(tmp_path, capsys):
    file, records, out = tmp_path / "p.jsonl", tmp_path / "r", tmp_path / "h.safetensors"
    texts = ["def area(w, h):", "The sea is", "Question: How many?\nAnswer:", "import os\n\ndef"]
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    collecting = ["hrad", "collect", "--prompts", str(file), "--out", str(records)]
    collecting += ["--gamma", "2", "--max-tokens", "32"]
    assert main(collecting) == 0
    assert "records of 4 prompts" in capsys.readouterr().out
    assert main([*collecting[:-1], "31"]) == 2
    assert "max_tokens 32 there and 31 here" in capsys.readouterr().err
    plot = tmp_path / "plot.svg"
    training = ["hrad", "train", str(records), "--out", str(out), "--held-out", "0.3"]
    assert main([*training, "--epochs", "2", "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for name in (
        "macro-F1",
        "explicit",
        "implicit",
        "calibrated",
        "Brier",
        "log-loss",
        "confusion",
    ):
        assert name in printed
    assert "<svg" in plot.read_text()
    model = HRAD.load(out)
    assert (model.gamma, model.layers, model.setting.draft) == (2, 4, "draft")
    assert model.trained["held_out"]["macro_f1"].keys() == baselines.GOES_BY.keys()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["collect", "--prompts", "x.jsonl", "--out", "r"], "cannot read x.jsonl"),
        (["collect", "--prompts", "p.jsonl", "--out", "r", "--draft", "none"], "give a draft"),
        (["collect", "--prompts", "p.jsonl", "--out", "r", "--gamma", "0"], "--gamma must be 1"),
        (["collect", "--prompts", "p.jsonl", "--out", "r", "--layers", "9"], "must be 8 or fewer"),
        (["collect", "--prompts", "p.jsonl", "--out", "p.jsonl"], "cannot write p.jsonl"),
        (["train", "r", "--out", "h.safetensors"], "r holds no records: `specbranch hrad collect`"),
        (["train", "r", "--out", "no/folder"], "cannot write no/folder: no folder"),
        (["train", "r", "--out", "h", "--held-out", "1"], "--held-out must be between 0 and 1"),
        (["train", "r", "--out", "h", "--epochs", "0"], "--epochs must be 1 or more"),
        (["train", "r", "--out", "h", "--plot", "x.pdf"], "a plot is .svg or .png, not 'x.pdf'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    assert main(["hrad", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert complaint in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_hrad_is_not_asked_where_noise_says_more(monkeypatch):
    asked = []
    opened = Verifier.open

    def open_(worker, texts):
        asked.extend(text.judged for text in texts)
        opened(worker, texts)

    monkeypatch.setattr(Verifier, "open", open_)
    sampled = SamplingParams(max_tokens=4, temperature=1.0, seed=1)
    paper = SpeculativeConfig(epsilon=0.3)
    with LLM(executor="inline") as llm:
        llm.generate("def f", SamplingParams(max_tokens=4))
        llm.generate("def f", replace(sampled, acceptance="rejection"))
        llm.generate("def f", sampled, config=paper)
        llm.generate("def f", sampled)
    assert asked == [True, True, True, False]


def test_the_predictor_beside_a_draft_is_taken_where_it_is_the_pairs(tmp_path, monkeypatch):
    names = [
        save_pair_half(tmp_path / name, tiny_model("llama", seed=seed), tiny_tokenizer())
        for seed, name in enumerate(("target", "draft", "other"))
    ]
    target, draft, other = names
    predict, asked = HRAD.forward, []

    def counted(self, z):
        asked.append(len(z))
        return predict(self, z)

    monkeypatch.setattr(HRAD, "forward", counted)

    def text(*names, **options):
        with LLM(*names, executor="inline", speculate="always", **options) as llm:
            if not (tmp_path / "draft" / "hrad.safetensors").exists():
                setting = RecordingSetup.of(llm.target, llm.draft, 8, LAYERS)
                HRAD(setting).save(tmp_path / "draft" / "hrad.safetensors")
            asked.clear()
            [output] = llm.generate([[5, 6, 7]], GREEDY)
        return output.outputs[0].token_ids

    without = text(target, draft)
    assert not asked
    assert text(target, draft) == without
    assert asked
    assert text(target, draft, gamma=4) == without
    assert not asked  # it is for another γ
    text(other, draft)
    assert not asked  # and for another target
    with pytest.raises(InputError, match="this H-RAD is for"):
        text(other, draft, hrad=str(tmp_path / "draft" / "hrad.safetensors"))
