"""A training loop that can be interrupted and resumed without changing what it computes."""

from __future__ import annotations

import time
from collections.abc import Callable
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


def fit(
    model: PreTrainedModel,
    loss: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    title: str,
    progress: Callable[[float], float] = lambda share: share,
) -> float:
    """Minimise ``loss(step)`` in `steps` steps: Muon for the layers' matrices, AdamW for the rest.

    Args:
        model: trained in place; its device decides where the work is done.
        loss: the scalar loss of the model on the batch of that step.
        learning_rate: Muon's; AdamW's is 0.15 of it.
        checkpoint: written every two minutes and read on start, so a rerun goes on from there.
        progress: maps the share of these steps done to the share of the whole schedule.

    Returns:
        The mean loss in nats over the last 50 steps.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    inside = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in inside]
    optimizers = [
        Muon(matrices, lr=learning_rate),
        torch.optim.AdamW(others, lr=0.15 * learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [learning_rate, 0.15 * learning_rate]
    start, losses = 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=model.device)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, losses = saved["step"], saved["losses"]

    def save(step: int) -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = checkpoint.with_suffix(".partial")
        states = [o.state_dict() for o in optimizers]
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": states,
                "step": step,
                "losses": losses[-50:],
            },
            partial,
        )
        partial.replace(checkpoint)

    bfloat16 = has_native_bfloat16(model.device)
    model.train()
    saved_at = time.monotonic()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=title, mininterval=5)
    for step in bar:
        factor = min(1.0, (step + 1) / 30) * decay(progress(step / steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
            value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(value.item())
        bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}")
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            save(step + 1)
            saved_at = time.monotonic()
    save(steps)
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])
