"""What a target answers to prompts: the text that its draft is trained and measured on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specbranch.engine.inputs import chat_prompt
from specbranch.errors import InputError

TEMPERATURES = (0.0, 0.0, 0.7, 1.0)  # half of the answers are greedy
BATCH = 32
_SAID = "what-a-user-says"
HELD_OUT = 20  # one greedy chunk in this many is never trained on
LIKELIEST = 32  # tokens whose chances are kept at each place of an answer

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Likeliest:
    """What the target thought likely at each token of an answer.

    Attributes:
        tokens: the likeliest ones, int32 ``[answer tokens, LIKELIEST]``, best first.
        log_chances: of each at temperature 1, float16 ``[answer tokens, LIKELIEST]``.
    """

    tokens: Tokens
    log_chances: NDArray[np.float16]


@dataclass(frozen=True)
class Answer:
    """A prompt and what the target wrote after it.

    Attributes:
        tokens: of both, int32 ``[tokens]``.
        prompt_length: tokens of the prompt.
        likeliest: what else the target might have written.
    """

    tokens: Tokens
    prompt_length: int
    likeliest: Likeliest

    @property
    def length(self) -> int:
        """Tokens that the target wrote."""
        return len(self.tokens) - self.prompt_length


class AnswerStore:
    """Answers in a folder, a file for each batch: an interrupted run goes on after the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def chunks(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def add(self, answers: Sequence[Answer], greedy: bool) -> None:
        """Write a chunk, whole or not at all."""
        kind = "greedy" if greedy else "sampled"
        file = self.folder / f"{len(self.chunks()):05}-{kind}.safetensors"
        partial = file.with_suffix(".partial")
        save_file(
            {
                "tokens": np.concatenate([answer.tokens for answer in answers]),
                "lengths": np.array([len(answer.tokens) for answer in answers], dtype=np.int32),
                "prompt_lengths": np.array([a.prompt_length for a in answers], dtype=np.int32),
                "likeliest": np.concatenate([answer.likeliest.tokens for answer in answers]),
                "log_chances": np.concatenate([a.likeliest.log_chances for a in answers]),
            },
            partial,
        )
        partial.replace(file)

    @property
    def seconds(self) -> float:
        """Spent on answers so far, in all runs."""
        return float(self._clock.read_text()) if self._clock.is_file() else 0.0

    @seconds.setter
    def seconds(self, spent: float) -> None:
        self._clock.write_text(f"{spent:.1f}\n")

    @property
    def _clock(self) -> Path:
        return self.folder / "seconds.txt"

    def split(self) -> tuple[list[Answer], list[Answer]]:
        """The answers to train on, and greedy ones to measure on.

        Raises:
            InputError: there are too few for both.
        """
        greedy = [chunk for chunk in self.chunks() if "greedy" in chunk.name]
        held_out = greedy[::HELD_OUT]
        train = [
            answer for chunk in self.chunks() if chunk not in held_out for answer in _read(chunk)
        ]
        measured = [answer for chunk in held_out for answer in _read(chunk)]
        if not train or not measured:
            raise InputError(
                f"too few answers in {self.folder}: give more prompts or more --minutes"
            )
        return train, measured


def _read(file: Path) -> list[Answer]:
    entries = load_file(file)
    prompts = entries["prompt_lengths"]
    texts = np.split(entries["tokens"], np.cumsum(entries["lengths"])[:-1])
    ends = np.cumsum(entries["lengths"] - prompts)[:-1]
    likeliest = [np.split(entries[name], ends) for name in ("likeliest", "log_chances")]
    return [
        Answer(text, int(prompt), Likeliest(tokens, chances))
        for text, prompt, tokens, chances in zip(texts, prompts, *likeliest, strict=True)
    ]


class _Record(LogitsProcessor):
    """Keeps the likeliest tokens of every step, before a temperature changes their chances."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.log_chances: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found = scores.float().log_softmax(-1).topk(min(LIKELIEST, scores.shape[-1]))
        self.tokens.append(found.indices.to("cpu", torch.int32))
        self.log_chances.append(found.values.to("cpu", torch.float16))
        return scores


@torch.inference_mode()
def answer_batch(
    target: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    temperature: float = 0.0,
) -> list[Answer]:
    """The target's answers, those of a batch at once, end of text included.

    Args:
        target: in evaluation mode, on any device.
        prompts: token ids of each.
        max_tokens: most tokens of an answer.
        temperature: 0 is greedy.
    """
    ends = target.generation_config.eos_token_id
    ending = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    padding = min(ending, default=0)
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    record = _Record()
    out = target.generate(
        ids.to(target.device),
        attention_mask=mask.to(target.device),
        max_new_tokens=max_tokens,
        pad_token_id=padding,
        logits_processor=LogitsProcessorList([record]),
        **sampling,
    )
    likely = torch.stack(record.tokens, 1).numpy()  # [rows, steps, LIKELIEST]
    chances = torch.stack(record.log_chances, 1).numpy()
    answers = []
    for index, (prompt, row) in enumerate(zip(prompts, out[:, longest:].tolist(), strict=True)):
        end = next((i + 1 for i, token in enumerate(row) if token in ending), len(row))
        tokens = np.array([*prompt, *row[:end]], dtype=np.int32)
        likeliest = Likeliest(likely[index, :end], chances[index, :end])
        answers.append(Answer(tokens, len(prompt), likeliest))
    return answers


def self_prompts(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, file: Path
) -> list[list[int]]:
    """Prompts that the target writes itself: what a user would say, or the beginning of a text.

    A model that was taught to answer has learned what it is asked, too: given the beginning of a
    user's turn, it samples one (Magpie, Xu et al. 2024, arXiv 2406.08464).

    Args:
        target: in evaluation mode.
        tokenizer: with a chat template, or without.
        count: of prompts.
        file: keeps them, for a run that goes on.
    """
    if file.is_file():
        kept: list[list[int]] = json.loads(file.read_text())
        return kept
    before, after, most = _around_turn(tokenizer)
    found: list[list[int]] = []
    with tqdm(total=count, desc="prompts") as bar:
        while len(found) < count:
            torch.manual_seed(len(found))
            batch = answer_batch(target, [before] * BATCH, most, temperature=1.0)
            for said in batch:
                ids = said.tokens[said.prompt_length :].tolist()
                if after and ids[-1] not in (before[0], after[0]):  # never ended
                    continue
                found.append([*before, *(ids[:-1] if after else ids), *after])
            bar.update(min(count, len(found)) - bar.n)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found[:count]))
    return found[:count]


def _around_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], int]:
    """What comes before and after a user's turn, and the most tokens of one."""
    if not tokenizer.chat_template:
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        return [0 if first is None else first], [], 24
    text = chat_prompt([{"role": "user", "content": _SAID}], tokenizer).text
    before, _, after = text.partition(_SAID)
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after)]
    return ids[0], ids[1], 96


def write_answers(
    target: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    store: AnswerStore,
    seconds: float,
    max_tokens: int,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Have the target answer prompts, batch after batch, for so long or until all are answered.

    Prompts of a batch are alike in length; each pass over the prompts has another temperature. The
    number of chunks in the store alone decides which batch is next, so that a rerun goes on.

    Args:
        target: in evaluation mode.
        prompts: token ids of each.
        store: where the answers go.
        seconds: after which no further batch is begun, interruptions not counted.
        max_tokens: most tokens of an answer.
        clock: seconds that have passed.
    """
    rng = np.random.default_rng(0)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    plan = [
        (batch, temperature)
        for temperature in TEMPERATURES
        for batch in rng.permutation(len(batches)).tolist()
    ]
    rng.shuffle(plan)
    written = 0
    done = len(store.chunks())
    began = clock() - store.seconds
    with tqdm(total=len(plan), initial=done, desc="target's answers", unit="batch") as bar:
        for number, (batch, temperature) in enumerate(plan[done:], start=done):
            if store.seconds >= seconds:
                break
            torch.manual_seed(number)
            picked = [prompts[index] for index in batches[int(batch)]]
            answers = answer_batch(target, picked, max_tokens, temperature)
            store.add(answers, greedy=temperature == 0)
            store.seconds = clock() - began
            written += sum(answer.length for answer in answers)
            bar.set_postfix(tokens=written)
            bar.update()
