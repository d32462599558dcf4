"""Training of a draft on the target's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from specbranch.training.draft.answers import Answer
from specbranch.training.pair.fit import Limit, fit

BATCH_TOKENS = 3072
LONGEST = 1024
UNSEEN = -100  # what `cross_entropy` leaves out
MEASURED = 48  # answers, while it trains


def frequent_tokens(answers: Sequence[Answer], vocabulary: int, most: int) -> Tensor:
    """The tokens that a target writes most, int64 ``[≤ most]``, ascending.

    The head is most of a narrow draft's step. It need not score what the target hardly ever says:
    a token that cannot be drafted costs a rollback, never a wrong text.
    """
    written = np.concatenate([answer.tokens[answer.prompt_length :] for answer in answers])
    counts = np.bincount(written, minlength=vocabulary)
    seen = np.flatnonzero(counts)
    kept = seen[np.argsort(-counts[seen], kind="stable")][:most]
    return torch.from_numpy(np.sort(kept))


def batches(answers: Sequence[Answer], seed: int) -> list[list[Answer]]:
    """All answers once, in batches of like lengths that hold `BATCH_TOKENS` with their padding."""
    rng = np.random.default_rng(seed)
    # Lengths are jittered, so that the same answers do not meet in every pass.
    keys = [len(answer.tokens) * rng.uniform(0.8, 1.25) for answer in answers]
    made: list[list[Answer]] = [[]]
    for index in np.argsort(keys):
        answer = answers[int(index)]
        longest = max(len(each.tokens) for each in [*made[-1], answer])
        if made[-1] and (len(made[-1]) + 1) * min(longest, LONGEST) > BATCH_TOKENS:
            made.append([])
        made[-1].append(answer)
    return [made[int(index)] for index in rng.permutation(len(made))]


class AnswerLoss:
    """Cross-entropy of a draft on what the target thought likely where it wrote its answers.

    A distribution says more than the one token that was drawn from it: distillation (Hinton et al.
    2015, arXiv 1503.02531) with the target's likeliest tokens, those that the draft can draft.

    Args:
        draft: the model.
        answers: to train on.
        tokens: those that it may draft, ascending; None for all.
        seed: with the step number, decides a batch completely.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        answers: Sequence[Answer],
        tokens: Tensor | None,
        seed: int = 0,
    ) -> None:
        self.draft = draft
        self.answers = answers
        self.seed = seed
        vocabulary = draft.get_input_embeddings().num_embeddings
        self.tokens = torch.arange(vocabulary) if tokens is None else tokens
        self.place = torch.full((vocabulary,), UNSEEN)
        self.place[self.tokens] = torch.arange(len(self.tokens))
        self._plan: list[list[Answer]] = []
        self._first = 0
        self._pass = 0

    def __call__(self, step: int) -> Tensor:
        while step >= self._first + len(self._plan):
            self._first += len(self._plan)
            self._plan = batches(self.answers, self.seed + self._pass)
            self._pass += 1
        batch = self._plan[step - self._first]
        logits, _ = self.logits(batch)
        return F.cross_entropy(logits.float(), self._likely(batch))

    def _likely(self, batch: Sequence[Answer]) -> Tensor:
        """What the target thought likely, float32 ``[answer tokens, tokens]``.

        Where it thought only of tokens that cannot be drafted, a row is zero.
        """
        counts = [min(answer.length, LONGEST - 1) for answer in batch]
        pairs = list(zip(batch, counts, strict=True))
        tokens = np.concatenate([answer.likeliest.tokens[-count:] for answer, count in pairs])
        logs = np.concatenate([answer.likeliest.log_chances[-count:] for answer, count in pairs])
        places = self.place[torch.from_numpy(tokens).long()]
        chances = torch.from_numpy(logs).float().exp().masked_fill(places == UNSEEN, 0)
        chances /= chances.sum(-1, keepdim=True).clamp_min(1e-9)
        likely = torch.zeros(len(chances), len(self.tokens))
        return likely.scatter_add_(1, places.clamp_min(0), chances).to(self.draft.device)

    def logits(self, batch: Sequence[Answer]) -> tuple[Tensor, Tensor]:
        """Logits at the answers' tokens ``[answer tokens, tokens]``, and which token each was.

        The latter is int64 ``[answer tokens]``, an index into `tokens`, or `UNSEEN`.
        """
        longest = min(LONGEST, max(len(answer.tokens) for answer in batch))
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        following = torch.full_like(ids, -1)
        for row, answer in enumerate(batch):
            # Of a long text the end: what comes before the answer matters less, the nearer more.
            kept = torch.from_numpy(answer.tokens[-longest:]).long()
            start = max(answer.prompt_length - (len(answer.tokens) - len(kept)), 1)
            ids[row, : len(kept)] = kept
            following[row, start - 1 : len(kept) - 1] = kept[start:]
        device = self.draft.device
        hidden = self.draft.base_model(ids.to(device), use_cache=False).last_hidden_state
        hidden = hidden[(following >= 0).to(device)]
        head = self.draft.get_output_embeddings()
        if len(self.tokens) == head.weight.shape[0]:
            logits = head(hidden)
        else:
            logits = F.linear(hidden, head.weight[self.tokens.to(device)])
        return logits, self.place[following[following >= 0]].to(device)


@torch.inference_mode()
def agreement(loss: AnswerLoss, answers: Sequence[Answer]) -> float:
    """How often the draft's likeliest token is what the target wrote."""
    was_training = loss.draft.training
    loss.draft.eval()
    hits = count = 0
    for batch in batches(answers, 0):
        logits, written = loss.logits(batch)
        hits += int((logits.argmax(-1) == written).sum())
        count += len(written)
    loss.draft.train(was_training)
    return hits / max(count, 1)


def train_draft(
    draft: PreTrainedModel,
    answers: Sequence[Answer],
    held_out: Sequence[Answer],
    tokens: Tensor | None,
    seconds: float,
    checkpoint: Path,
    freeze_embeddings: bool,
    learning_rate: float = 1e-3,
) -> float:
    """Train a draft in place on a target's answers; returns its agreement on held-out ones.

    Args:
        draft: the model; it is left in evaluation mode.
        answers: to train on.
        held_out: greedy ones to measure on; the best state on them is kept.
        tokens: those that it may draft, ascending; None for all.
        seconds: of training, interruptions not counted.
        checkpoint: where a rerun goes on.
        freeze_embeddings: leave the table that reads and writes tokens as it is: that of a cut of
            the target is the target's own, and there are few answers to learn a better one from.
        learning_rate: AdamW's peak.
    """
    draft.get_input_embeddings().weight.requires_grad_(not freeze_embeddings)
    trained = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    loss = AnswerLoss(draft, answers, tokens)
    kept = checkpoint.with_name("best.pt")

    def measure() -> float:
        found = agreement(loss, held_out[:MEASURED])
        best = torch.load(kept)["agreement"] if kept.is_file() else -1.0
        if found > best:
            partial = kept.with_suffix(".partial")
            torch.save({"agreement": found, "model": draft.state_dict()}, partial)
            partial.replace(kept)
        return found

    fit(draft, loss, [optimizer], Limit(seconds=seconds), checkpoint, "draft", measure=measure)
    if measure() < torch.load(kept)["agreement"]:  # it has learned the answers by heart since
        draft.load_state_dict(torch.load(kept)["model"])
    return agreement(loss, held_out)
