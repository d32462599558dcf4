"""A training loop that can be interrupted and resumed without changing what it computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from specbranch.hardware import has_native_bfloat16
from specbranch.training.pair.muon import Muon

CHECKPOINT_SECONDS = 120


def decay(progress: float) -> float:
    """Learning-rate factor at a share `progress` of the run: constant to one half, then to 3 %."""
    return 1.0 if progress < 0.5 else max(0.03, 2.0 * (1.0 - progress))


def muon_and_adamw(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW, at 0.15 of its learning rate, for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    inside = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(others, lr=0.15 * learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclass(frozen=True)
class Limit:
    """How long to train: so many steps, or so many seconds, interruptions not counted.

    Attributes:
        steps, seconds: one of them.
    """

    steps: int | None = None
    seconds: float | None = None

    def share(self, step: int, seconds: float) -> float:
        """The share of the run that is done."""
        if self.steps is not None:
            return step / self.steps
        assert self.seconds is not None
        return seconds / self.seconds


def fit(
    model: PreTrainedModel,
    loss: Callable[[int], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    limit: Limit,
    checkpoint: Path,
    title: str,
    progress: Callable[[float], float] = lambda share: share,
    measure: Callable[[], float] | None = None,
) -> float:
    """Minimise ``loss(step)``.

    Args:
        model: trained in place; its device decides where the work is done.
        loss: the scalar loss of the model on the batch of that step.
        optimizers: with the peaks of their learning rates.
        limit: how long.
        checkpoint: written every two minutes and read on start, so a rerun goes on from there.
        progress: maps the share of this run that is done to the share of the whole schedule.
        measure: asked at each checkpoint how good the model is, and shown.

    Returns:
        The mean loss in nats over the last 50 steps.
    """
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    step, spent, losses = 0, 0.0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=model.device)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, spent, losses = saved["step"], saved["seconds"], saved["losses"]

    def save() -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        states = [o.state_dict() for o in optimizers]
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": states,
                "step": step,
                "seconds": spent,
                "losses": losses[-50:],
            },
            partial,
        )
        partial.replace(checkpoint)

    bfloat16 = has_native_bfloat16(model.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    quality: dict[str, str] = {}
    model.train()
    saved_at = spent
    with tqdm(initial=step, total=limit.steps, desc=title, unit="step", mininterval=5) as bar:
        while (share := limit.share(step, spent)) < 1:
            began = time.monotonic()
            factor = min(1.0, (step + 1) / 30) * decay(progress(share))
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                for group, rate in zip(optimizer.param_groups, peak, strict=True):
                    group["lr"] = rate * factor
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                value = loss(step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(value.item())
            step += 1
            spent += time.monotonic() - began
            if spent - saved_at > CHECKPOINT_SECONDS:
                save()
                saved_at = spent
                if measure is not None:
                    quality["agreement"] = f"{measure():.3f}"
            mean = sum(losses[-50:]) / len(losses[-50:])
            bar.set_postfix({"loss": f"{mean:.3f}", "done": f"{share:.0%}"} | quality)
            bar.update()
    save()
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])
