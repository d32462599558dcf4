"""Answers as Spec-Bench's own scripts read them (Xia et al. 2024, arXiv 2401.07851).

Its ``evaluation/speed.py`` counts the tokens of the baseline by tokenising its text again, and
takes one off for the token that begins a text. So a tokenizer that adds one goes with the answers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from specbranch.bench.run import Heat, Turn


def write_answers(heats: Sequence[Heat], names: Iterable[str], folder: Path) -> list[Path]:
    """One file a draft and method, in a folder a repeat: ``temp0_run_1/draft-lookup.jsonl``.

    An answer has `question_id`, `category`, and of its one choice `turns`, `decoding_steps`,
    `new_tokens` and `wall_time` (seconds) by turn, and `accept_lengths`: tokens committed by each
    target call.
    """
    files: dict[Path, list[dict[str, Any]]] = {}
    for heat in heats:
        run = folder / f"temp{heat.temperature:g}_run_{heat.repeat}"
        for name in names:
            if name in heat.answers:
                file = run / f"{heat.draft.replace('/', '--')}-{name}.jsonl"
                files.setdefault(file, []).append(_answer(heat, name, heat.answers[name]))
    for file, rows in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [*files]


def _answer(heat: Heat, name: str, turns: Sequence[Turn]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "turns": [turn.text for turn in turns],
        "decoding_steps": [turn.metrics.target_calls for turn in turns],
        "new_tokens": [turn.metrics.committed for turn in turns],
        "wall_time": [turn.metrics.seconds for turn in turns],
        "accept_lengths": [len(done.tokens) for turn in turns for done in turn.rounds],
    }
    key = "/".join(map(str, (*heat.key, name)))
    return {
        "question_id": heat.question.id,
        "category": heat.question.category,
        "answer_id": uuid5(NAMESPACE_URL, key).hex,
        "model_id": name,
        "choices": [choice],
        "tstamp": 0,
    }


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a copy that begins every text with a special token."""
    begin = tokenizer.bos_token or tokenizer.eos_token
    begins = copy.deepcopy(tokenizer)
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.convert_tokens_to_ids(begin))]
    )
    begins.save_pretrained(folder)
