"""The run of a benchmark: every question by every contender, interleaved; kept in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from specbranch.bench.contenders import BIT_EXACT, Entrant
from specbranch.bench.suites import Question
from specbranch.errors import InputError
from specbranch.metrics import Fates, Metrics, Round
from specbranch.outputs import RequestOutput
from specbranch.sampling_params import SamplingParams
from specbranch.timing import Span

WARM_UP = SamplingParams(max_tokens=16)


@dataclass(frozen=True)
class Turn:
    """One answer to one turn of the user's."""

    text: str
    token_ids: list[int]
    metrics: Metrics
    rounds: list[Round]

    @classmethod
    def of(cls, output: RequestOutput) -> Turn:
        completion = output.outputs[0]
        return cls(completion.text, completion.token_ids, output.metrics, output.rounds)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Turn:
        fates = Fates(**row["metrics"]["fates"])
        metrics = Metrics(**row["metrics"] | {"fates": fates})
        return cls(row["text"], row["token_ids"], metrics, [_round(r) for r in row["rounds"]])


def _round(row: dict[str, Any]) -> Round:
    spans = {
        name: Span(row[name]["start"], row[name]["end"], tuple(row[name]["forwards"]))
        for name in ("drafting", "branching", "verification")
        if row[name]
    }
    return Round(**row | spans | {"fates": Fates(**row["fates"])})


@dataclass(frozen=True)
class Heat:
    """One question by all contenders, one after the other.

    Attributes:
        draft: of the pair.
        temperature: 0 is greedy.
        repeat: from 1.
        question: what was asked.
        answers: turn by turn, by contender.
    """

    draft: str
    temperature: float
    repeat: int
    question: Question
    answers: dict[str, list[Turn]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from all others of a run."""
        return self.draft, self.temperature, self.repeat, self.question.suite, self.question.id

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Heat:
        question = Question(**row["question"] | {"turns": tuple(row["question"]["turns"])})
        answers = {
            name: [Turn.from_json(turn) for turn in turns] for name, turns in row["answers"].items()
        }
        return cls(**row | {"question": question, "answers": answers})


class RunFolder:
    """Where a run keeps what is finished, so that it can be interrupted and gone on with.

    Args:
        folder: made if it is not there; `heats.jsonl` has a line for every finished heat.
        settings: what has to be the same for a run to be gone on with; JSON types.

    Raises:
        InputError: the folder has a run with other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._heats = folder / "heats.jsonl"
        file = folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if file.exists():
            stored = json.loads(file.read_text())
            if other := [name for name in settings if stored.get(name) != settings[name]]:
                raise InputError(
                    f"{folder} has a run with another {', '.join(other)}: "
                    "go on with the same options, or give another folder"
                )
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(settings, indent=2) + "\n")
            except OSError as error:
                raise InputError(f"cannot write {file}: {error.strerror}") from None

    def heats(self) -> list[Heat]:
        """What is finished. A line that was cut off when the program was ended is taken away."""
        if not self._heats.exists():
            return []
        text = self._heats.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            self._heats.write_bytes(whole)
        return [Heat.from_json(json.loads(line)) for line in whole.splitlines()]

    def add(self, heat: Heat) -> None:
        with self._heats.open("a") as file:
            file.write(json.dumps(asdict(heat)) + "\n")


def first_ids(tokenizer: PreTrainedTokenizerBase, turn: str, most: int) -> list[int]:
    """A prompt as tokens, a long one cut at its end."""
    return list(tokenizer(turn, truncation=True, max_length=most)["input_ids"])


def converse(
    entrant: Entrant,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    params: SamplingParams,
    most: int,
) -> list[Turn]:
    """Ask turn by turn; what was said before is part of the prompt.

    A conversation goes by the tokenizer's chat template where it has one; else its turns are
    paragraphs. Of a conversation longer than `most` tokens the beginning is left out.
    """
    turns: list[Turn] = []
    chat = tokenizer.chat_template is not None
    ids: list[int] = []
    for said in question.turns:
        if chat:
            messages = [{"role": "user", "content": question.turns[0]}]
            for done, following in zip(turns, question.turns[1:], strict=False):
                messages.append({"role": "assistant", "content": done.text})
                messages.append({"role": "user", "content": following})
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )[-most:]
        elif not turns:
            ids = first_ids(tokenizer, said, most)
        else:
            added = tokenizer(f"\n\n{said}\n\n", add_special_tokens=False)["input_ids"]
            ids = [*ids, *turns[-1].token_ids, *added][-most:]
        turns.append(Turn.of(entrant.generate(ids, params)))
    return turns


def plan(
    draft: str, temperatures: Sequence[float], repeats: int, questions: Sequence[Question]
) -> Iterator[Heat]:
    """The heats of one pair, in order."""
    for repeat in range(1, repeats + 1):
        for temperature in temperatures:
            for question in questions:
                yield Heat(draft, temperature, repeat, question)


def run(
    entrants: Sequence[Entrant],
    heats: Sequence[Heat],
    tokenizer: PreTrainedTokenizerBase,
    params: SamplingParams,
    most: int,
    folder: RunFolder,
) -> None:
    """Run heats, each written to the folder when all its entrants are done.

    Args:
        params: greedy, or coupled sampling with a seed; each heat has its own temperature.
        most: tokens of a prompt.
    """
    warm_up = first_ids(tokenizer, heats[0].question.turns[0], most)
    for entrant in entrants:
        entrant.generate(warm_up, WARM_UP)
    with tqdm(total=len(heats) * len(entrants), desc=f"{heats[0].draft}: texts") as progress:
        for heat in heats:
            asked = replace(params, temperature=heat.temperature)
            for entrant in entrants:
                if heat.temperature == 0 or entrant.samples:
                    answers = converse(entrant, tokenizer, heat.question, asked, most)
                    heat.answers[entrant.name] = answers
                progress.update()
            folder.add(heat)


def identical(heats: Iterable[Heat], exact: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """Texts that are plain decoding's, token by token; and all that are to be.

    Args:
        exact: names of the contenders that promise it, by draft.
    """
    same = compared = 0
    for heat in heats:
        expected = [turn.token_ids for turn in heat.answers[BIT_EXACT]]
        for name in exact[heat.draft]:
            found = [turn.token_ids for turn in heat.answers[name]]
            compared += len(expected)
            same += sum(a == b for a, b in zip(found, expected, strict=True))
    return same, compared
