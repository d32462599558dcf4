"""Training text of the bundled pair: four domains, split into training and held-out documents."""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from specbranch.errors import InputError
from specbranch.prompts import math_prompt, read_jsonl

DOMAINS = ("code", "math", "news", "encyclopedia")
END_OF_TEXT = "<|endoftext|>"
CODE_PACKAGES = ("torch", "transformers", "numpy", "sympy", "networkx", "jinja2", "pip")
CODE_BYTES = 24_000_000
HELD_OUT = 50  # one document in this many is never trained on


def math_text(row: dict[str, str]) -> str:
    """A GSM8K row as the text the pair is trained and prompted with, calculator marks removed."""
    answer = re.sub(r"<<[^>]*>>", "", row["answer"]).strip()
    return f"{math_prompt(row['question'])} {answer}"


def _python_sources() -> list[str]:
    stdlib, site = (Path(sysconfig.get_paths()[k]) for k in ("stdlib", "purelib"))
    skipped = {"site-packages", "test", "tests", "lib2to3", "encodings", "idle_test"}
    files = [
        f for f in sorted(stdlib.rglob("*.py")) if not skipped & set(f.relative_to(stdlib).parts)
    ]
    for package in CODE_PACKAGES:
        files += sorted((site / package).rglob("*.py"))
    random.Random(0).shuffle(files)
    texts: list[str] = []
    size = 0
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        if len(text) > 300:
            texts.append(text)
            size += len(text)
        if size > CODE_BYTES:
            break
    return texts


def documents(corpus: Path) -> dict[str, list[str]]:
    """Documents by domain: ``*.jsonl`` and ``*.txt`` of `corpus`, and Python sources found here.

    JSONL rows with ``question``/``answer`` are math, rows with ``turns`` are news; text files are
    split at top-level ``= Title =`` headings (WikiText).

    Raises:
        InputError: `corpus` is no folder, or a domain has no document.
    """
    if not corpus.is_dir():
        raise InputError(f"corpus folder {corpus} does not exist")
    docs: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    docs["code"] = _python_sources()
    for file in sorted(corpus.glob("*.jsonl")):
        for row in read_jsonl(file):
            if "answer" in row:
                docs["math"].append(math_text(row))
            else:
                docs["news"].append(row["turns"][0])
    for file in sorted(corpus.glob("*.txt")):
        articles = re.split(r"\n (?== [^=])", file.read_text(encoding="utf-8"))
        docs["encyclopedia"] += [a for a in articles if len(a) > 200]
    for domain, texts in docs.items():
        if not texts:
            raise InputError(f"corpus folder {corpus} has no document of the domain '{domain}'")
        random.Random(domain).shuffle(texts)
    return docs


def train_tokenizer(docs: dict[str, list[str]], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab_size` tokens; token 0 ends, and also starts, a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = docs["code"][::3] + docs["math"] + docs["news"] + docs["encyclopedia"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def start_with_end_of_text(tokenizer: Tokenizer) -> None:
    """Make the tokenizer put token 0 before every text, as every training document has it."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, 0)],
    )


class TokenStreams:
    """Encoded documents of every domain, and batches drawn from them by step number alone.

    Args:
        docs: documents by domain; one in `HELD_OUT` goes to the held-out split.
        tokenizer: encodes them; every document is preceded by token 0.
        seed: with the step number, decides a batch completely, so that a resumed run sees the
            batches an uninterrupted one would have seen.
    """

    def __init__(self, docs: dict[str, list[str]], tokenizer: Tokenizer, seed: int) -> None:
        self.seed = seed
        self.train: dict[str, NDArray[np.uint16]] = {}
        self.starts: dict[str, NDArray[np.int64]] = {}
        self.held_out: dict[str, NDArray[np.uint16]] = {}
        for domain, texts in docs.items():
            encoded = [[0, *e.ids] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
            kept = [ids for i, ids in enumerate(encoded) if i % HELD_OUT]
            self.train[domain] = np.concatenate([np.array(ids, dtype=np.uint16) for ids in kept])
            self.starts[domain] = np.cumsum([0, *map(len, kept)])[:-1]
            self.held_out[domain] = np.concatenate(
                [np.array(ids, dtype=np.uint16) for ids in encoded[::HELD_OUT]]
            )

    def batch(
        self, step: int, rows: int, length: int, weights: dict[str, float], at_starts: float = 0.0
    ) -> torch.Tensor:
        """Token ids, int64 ``[rows, length]``, of domains drawn with `weights`.

        A share `at_starts` of the rows begins where a document begins, the rest anywhere.
        """
        rng = np.random.default_rng((self.seed, step))
        picked = rng.choice(len(weights), size=rows, p=list(weights.values()))
        batch = []
        for domain in (list(weights)[i] for i in picked):
            stream = self.train[domain]
            last = len(stream) - length
            if rng.random() < at_starts:
                offset = min(int(rng.choice(self.starts[domain])), last)
            else:
                offset = int(rng.integers(0, last))
            batch.append(stream[offset : offset + length])
        return torch.from_numpy(np.stack(batch).astype(np.int64))

    def held_out_rows(self, length: int, most: int) -> Iterator[tuple[str, torch.Tensor]]:
        """For each domain up to `most` held-out rows, int64 ``[rows, length]``."""
        for domain, stream in self.held_out.items():
            rows = min(most, len(stream) // length)
            data = stream[: rows * length].reshape(rows, length).astype(np.int64)
            yield domain, torch.from_numpy(data)
