"""The H-RAD predictor: its computation, compared with numpy, and its files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from specbranch.errors import InputError
from specbranch.policy.hrad import HRAD, RecordingSetup

GAMMA = 3


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    model = HRAD(RecordingSetup("big", "b1", "small", "s1", GAMMA, 1, 32, "float32"))
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
    # Plain numbers give the same acceptance as training has for rows.
    confidences = [0.9, 0.0, 0.3]
    rows = predictor.token_scores(torch.tensor([signal.offsets]), torch.tensor([confidences]))
    assert signal.acceptance(confidences) == pytest.approx(rows[0].sigmoid().tolist(), abs=1e-6)


def test_a_file_holds_the_whole_predictor(predictor, tmp_path):
    predictor.save(tmp_path / "h.safetensors")
    loaded = HRAD.load(tmp_path / "h.safetensors")
    assert loaded.setting == predictor.setting
    assert loaded.trained == predictor.trained
    assert (loaded.gamma, loaded.layers) == (GAMMA, 1)
    for z in torch.randn(20, 64):
        assert loaded.signal(z) == predictor.signal(z)


def test_other_files_are_refused(predictor, tmp_path):
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
