"""Compiled libraries are kept where the user can write, and broken ones are built anew."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from specbranch.cache_folder import cache_folder, prepare_folder


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a home, and the folder of the temporary files."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("SPECBRANCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_that_is_named_first_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SPECBRANCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "specbranch"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/specbranch")
    monkeypatch.setenv("SPECBRANCH_CACHE", "/here")
    assert cache_folder() == Path("/here")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have no numbers here")
def test_a_user_without_a_home_has_a_private_folder(nobody: Path) -> None:
    folder = cache_folder()
    assert folder == nobody / f"specbranch-{os.getuid()}"
    for _ in range(2):  # made, then there
        prepare_folder(folder)
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have no numbers here")
def test_code_that_another_user_may_have_put_there_is_not_loaded(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    folder = cache_folder()
    folder.mkdir()  # by us, who are not `other`
    with pytest.raises(PermissionError, match=f"{folder} belongs to another user: set SPECB"):
        prepare_folder(folder)
