"""H-RAD offline: records of texts, training on records made by hand, baselines, files, refusals."""

import json
import math
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from specbranch.cli import main
from specbranch.config import SpeculativeConfig
from specbranch.errors import ExecutorError, InputError
from specbranch.llm import LLM
from specbranch.methods.speculative import speculative
from specbranch.policy.hrad import HRAD
from specbranch.policy.signal import Keep
from specbranch.sampling_params import SamplingParams
from specbranch.training.hrad import baselines
from specbranch.training.hrad.collect import Prompt, collect, record
from specbranch.training.hrad.records import Collection, RecordingSetup, Records, manifest
from specbranch.training.hrad.scores import Fit, Scores
from specbranch.training.hrad.train import Recipe, fit, split
from specbranch.workers.drafter import DraftWorker
from specbranch.workers.verifier import TargetWorker
from tests.tiny import tiny_model

GAMMA, LAYERS = 3, 2
PROMPTS = [Prompt([5, 6, 7 + i], "p.jsonl") for i in range(6)]
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)


def made_for(gamma=GAMMA, hidden_size=32):
    return RecordingSetup("big", "b1", "small", "s1", gamma, 1, hidden_size, "float32")


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
    request = llm.request([5, 6, 7], GREEDY)
    rounds = list(llm.run(request, speculative, SpeculativeConfig(GAMMA)))
    text = [5, 6, 7, *request.sequence.tokens]
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
        monkeypatch.setattr(DraftWorker, "draft", dies)
        with pytest.raises(ExecutorError, match="the draft executor was lost"):
            record(llm, [5, 6, 7], GREEDY, GAMMA, LAYERS)


def dies(*arguments):
    raise ExecutorError("draft", "died")


def test_an_interrupted_collection_goes_on_where_it_was(pair, tmp_path, monkeypatch):
    llm, _ = pair
    whole, parts = collection(llm, tmp_path / "whole"), collection(llm, tmp_path / "parts")
    collect(llm, PROMPTS, GREEDY, whole)
    started, request = [], llm.request

    def interrupted(prompt, params):
        started.append(prompt)
        if len(started) == 4:
            raise KeyboardInterrupt
        return request(prompt, params)

    monkeypatch.setattr(llm, "request", interrupted)
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


def test_labels_and_judged_tokens():
    # The last two ended the text with a token of their own.
    offered, accepted = torch.tensor([3, 3, 3, 3, 2, 1]), torch.tensor([0, 1, 2, 3, 2, 0])
    rows = Records(torch.zeros(6, 1), torch.ones(6, 3), offered, accepted, torch.zeros(6))
    assert rows.labels.tolist() == [0, 1, 1, 2, 2, 0]
    tested = ["100", "110", "111", "111", "110", "100"]
    survived = ["000", "100", "110", "111", "110", "000"]
    assert rows.tested.int().tolist() == [[int(c) for c in row] for row in tested]
    assert rows.survived.int().tolist() == [[int(c) for c in row] for row in survived]


# Records made by hand


def synthetic(shuffled=False, prompts=60, rows=25, gamma=4, width=128):
    """Acceptance depends on a direction of z and, less, on the confidences."""
    generator = torch.Generator().manual_seed(3)
    n = prompts * rows
    direction = torch.randn(2 * width, generator=generator)
    z = 0.3 * torch.randn(n, 2 * width, generator=generator)
    ease = 2 * torch.randn(n, generator=generator)
    z += ease[:, None] * direction
    confidences = torch.rand(n, gamma, generator=generator)
    hardness = torch.linspace(-1.5, 1.5, gamma)
    chance = (15 * (ease[:, None] - hardness) + confidences.logit(eps=1e-3)).sigmoid()
    kept = torch.rand(n, gamma, generator=generator) < chance
    accepted = kept.long().cumprod(1).sum(1)
    if shuffled:
        z = z[torch.randperm(n, generator=generator)]
    offered = torch.full((n,), gamma)
    return Records(z, confidences, offered, accepted, torch.arange(prompts).repeat_interleave(rows))


def test_no_prompt_is_on_two_sides():
    records = synthetic()
    parts = split(records, 0.2, seed=1)
    sides = [set(p.prompts.tolist()) for p in (parts.training, parts.validation, parts.held_out)]
    assert [len(side) for side in sides] == [41, 7, 12]
    assert set.union(*sides) == set(range(60))
    again, other = split(records, 0.2, seed=1), split(records, 0.2, seed=2)
    assert torch.equal(again.held_out.z, parts.held_out.z)
    assert set(other.held_out.prompts.tolist()) != sides[2]
    with pytest.raises(InputError, match="records of 2 prompts are too few to split"):
        split(records.select(records.prompts < 2), 0.2, seed=1)
    with pytest.raises(InputError, match="no record to learn 'all' from"):
        split(records.select(records.labels != Keep.ALL), 0.2, seed=1)


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_can_be_learned_is_learned(shuffled):
    parts = split(synthetic(shuffled), 0.2, seed=0)
    recipe = Recipe(epochs=15)
    model = fit(made_for(4, 128), parts, recipe, "test")
    found = baselines.compare(model, parts, recipe)
    macro = {name: scores.macro_f1 for name, scores in found.classes.items()}
    loss = {name: fitted.log_loss for name, fitted in found.tokens.items()}
    if shuffled:
        assert macro[baselines.CLASSES] < 0.45
        assert loss[baselines.TOKENS] > 0.97 * loss[baselines.LOGISTIC]
    else:
        assert min(macro[baselines.CLASSES], macro[baselines.EXPLICIT]) > 0.65
        assert macro[baselines.TOKENS] > 0.7
        assert (
            loss[baselines.TOKENS] < 0.5 * loss[baselines.LOGISTIC] < 0.5 * loss[baselines.CONSTANT]
        )


def test_training_is_repeatable():
    parts = split(synthetic(prompts=12), 0.2, seed=0)
    one, two = (fit(made_for(4, 128), parts, Recipe(epochs=2), "test") for _ in range(2))
    assert torch.equal(one.classes.weight, two.classes.weight)
    other = fit(made_for(4, 128), parts, Recipe(epochs=2, seed=1), "test")
    assert not torch.equal(one.classes.weight, other.classes.weight)


def test_rules_on_confidences():
    confidences = torch.tensor([[0.9, 0.9, 0.9], [0.9, 0.2, 0.9], [0.1, 0.9, 0.9], [0.9, 0.8, 0.0]])
    offered, accepted = torch.tensor([3, 3, 3, 2]), torch.tensor([3, 1, 0, 2])
    rows = Records(torch.zeros(4, 1), confidences, offered, accepted, torch.zeros(4))
    assert baselines.implicit(rows, 0.5).tolist() == [2, 1, 0, 2]
    assert baselines.implicit(rows, 0.85).tolist() == [2, 1, 0, 1]
    assert 0.2 < baselines.best_epsilon(rows) <= 0.8
    # 0: nothing 0.6; 1: 0.4 · (1 − 0.7 · 0.9); then all of two tokens: 0.9 · 0.9.
    acceptance = torch.tensor([[0.4, 0.7, 0.9], [0.8, 0.3, 0.9], [0.1, 0.9, 0.9], [0.9, 0.9, 0.0]])
    assert baselines.likeliest(acceptance, rows).tolist() == [0, 1, 0, 2]


def test_scores_by_hand():
    scores = Scores.of(torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 1]))
    assert scores.confusion.tolist() == [[1, 1, 0], [1, 2, 0], [0, 1, 0]]
    assert scores.precision == pytest.approx([1 / 2, 2 / 4, 0])
    assert scores.recall == pytest.approx([1 / 2, 2 / 3, 0])
    assert scores.f1 == pytest.approx([1 / 2, 4 / 7, 0])
    assert scores.macro_f1 == pytest.approx((1 / 2 + 4 / 7) / 3)
    fitted = Fit.of(torch.tensor([0.8, 0.4]), torch.tensor([True, False]))
    assert fitted.brier == pytest.approx((0.04 + 0.16) / 2)
    assert fitted.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)


# The predictor


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    model = HRAD(made_for())
    torch.nn.init.normal_(model.mean)
    torch.nn.init.uniform_(model.std, 0.5, 2)
    torch.nn.init.normal_(model.slopes)
    model.round_weights()
    model.trained = {"epochs": 3, "held_out": {"macro_f1": {"H-RAD, classes": 0.5}}}
    return model.eval()


def test_signal_by_hand(predictor):
    weights = {name: value.double().numpy() for name, value in predictor.state_dict().items()}
    z = torch.randn(64, generator=torch.Generator().manual_seed(5))
    h = (z.double().numpy() - weights["mean"]) / weights["std"]
    for layer in ("trunk.0", "trunk.2"):
        h = np.maximum(weights[f"{layer}.weight"] @ h + weights[f"{layer}.bias"], 0)
    signal = predictor.signal(z)
    assert signal.keep == (weights["classes.weight"] @ h + weights["classes.bias"]).argmax()
    offsets = weights["offsets.weight"] @ h + weights["offsets.bias"]
    assert signal.offsets == pytest.approx(offsets, abs=1e-4)
    assert signal.slopes == pytest.approx(weights["slopes"])
    # What the executor computes of it is what training computed for rows.
    confidences = [0.9, 0.0, 0.3]
    rows = predictor.token_scores(torch.tensor([signal.offsets]), torch.tensor([confidences]))
    assert signal.acceptance(confidences) == pytest.approx(rows[0].sigmoid().tolist(), abs=1e-6)


def test_a_file_holds_all_of_it(predictor, tmp_path):
    predictor.save(tmp_path / "h.safetensors")
    loaded = HRAD.load(tmp_path / "h.safetensors")
    assert loaded.setting == predictor.setting
    assert loaded.trained == predictor.trained
    assert (loaded.gamma, loaded.layers) == (GAMMA, 1)
    for z in torch.randn(20, 64):
        assert loaded.signal(z) == predictor.signal(z)


def test_files_that_are_no_predictor(predictor, tmp_path):
    with pytest.raises(InputError, match=r"no H-RAD file .*nowhere"):
        HRAD.load(tmp_path / "nowhere")
    (tmp_path / "text").write_text("x" * 100)
    with pytest.raises(InputError, match="text is no safetensors file"):
        HRAD.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other", {"h-rad": json.dumps({"format": 1})})
    with pytest.raises(InputError, match="other holds no H-RAD predictor"):
        HRAD.load(tmp_path / "other")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="other holds no H-RAD predictor"):
        HRAD.load(tmp_path / "other")
    save_file({"x": torch.zeros(1)}, tmp_path / "later", {"h-rad": json.dumps({"format": 2})})
    with pytest.raises(InputError, match="later is of another version"):
        HRAD.load(tmp_path / "later")


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
    opened = TargetWorker.open

    def open_(worker, sequence, opening):
        asked.append(opening.signals)
        opened(worker, sequence, opening)

    monkeypatch.setattr(TargetWorker, "open", open_)
    sampled = SamplingParams(max_tokens=4, temperature=1.0, seed=1)
    paper = SpeculativeConfig(epsilon=0.3)
    with LLM(executors="inline") as llm:
        llm.generate("def f", SamplingParams(max_tokens=4))
        llm.generate("def f", replace(sampled, acceptance="rejection"))
        llm.generate("def f", sampled, options=paper)
        llm.generate("def f", sampled)
    assert asked == [True, True, True, False]
