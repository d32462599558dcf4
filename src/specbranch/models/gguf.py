"""Models in GGUF files, llama.cpp's format, as far as `transformers` reads them.

Their configuration and tokenizer are unpacked once, into the user's cache: reading them from the
file takes seconds each time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

from gguf import GGUFReader, LlamaFileType
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import cached_file

from specbranch.cache_folder import cache_folder, prepare_folder
from specbranch.errors import InputError
from specbranch.models.gguf_blocks import save_tensors
from specbranch.models.restricted_head import ENTRY

SUFFIX = ".gguf"
DRAFTED = "specbranch.draft_token_ids"  # tokens that a draft can draft, where they are not all
FORMAT = 2  # of the folders
FILE_TYPE = "gguf_file_type"  # of the configuration: how the file stores its weights
_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.gguf)")


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return name.lower().endswith(SUFFIX)


def gguf_file(name: str) -> Path:
    """The file of a name: a path, or ``owner/repository/FILE.gguf`` on the hub.

    Raises:
        InputError: there is no such file.
        OSError: the hub does not give it.
    """
    file = Path(name)
    if file.is_file():
        return file.resolve()
    if (found := _ON_HUB.fullmatch(name)) and not file.is_absolute() and name[0] != ".":
        return Path(cached_file(*found.groups()))
    raise InputError(f"no file '{name}': give a path, or owner/repository/FILE.gguf on the hub")


def unpacked(file: Path) -> Path:
    """A folder with the configuration and the tokenizer of a GGUF file, unpacked if need be.

    Raises:
        InputError: it is no GGUF file.
        ValueError: `transformers` does not read its architecture.
    """
    stat = file.stat()
    key = sha256(f"{FORMAT} {file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "gguf" / f"{file.stem}-{key}"
    if folder.is_dir():
        return folder
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise InputError(f"'{file}' is no GGUF file, or broken: copy or download it again")
    prepare_folder(cache_folder())
    folder.parent.mkdir(exist_ok=True)
    scratch = Path(mkdtemp(dir=folder.parent, prefix="partial-"))
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        # On a GPU, where memory is short; a CPU computes in float32, which loses nothing.
        config.dtype = "float16"
        reader = GGUFReader(file)
        setattr(config, FILE_TYPE, _file_type(reader))
        if drafted := reader.get_field(DRAFTED):
            setattr(config, ENTRY, [int(token) for token in drafted.contents()])
        config.save_pretrained(scratch)
        save_tensors(reader, scratch)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextmanager
def late_bar() -> Iterator[None]:
    """Show `transformers`' bar over the tensors of a file only where it takes long."""
    with patch.object(modeling_gguf_pytorch_utils, "tqdm", partial(tqdm, delay=10)):
        yield


def _file_type(reader: GGUFReader) -> str:
    """How a file stores most of its weights, such as ``Q4_1``."""
    field = reader.get_field("general.file_type")
    if field is None:
        return "unknown"
    try:
        kind = LlamaFileType(int(field.contents())).name
    except ValueError:
        return f"type {field.contents()}"
    return kind.removeprefix("MOSTLY_").removeprefix("ALL_")
