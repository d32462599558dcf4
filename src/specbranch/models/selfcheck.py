"""A short trial of forking and rewinding on the very model: wrong output is refused, not given."""

from __future__ import annotations

from itertools import cycle

import torch

from specbranch.errors import UnsupportedModelError
from specbranch.models.loading import one_line
from specbranch.models.runner import CausalRunner
from specbranch.models.width import NATURAL, Width

TRIED = ([1, 2, 3, 4, 5, 6, 7, 8, 12, 16], [9, 11, 13, 15, 14, 2], [15, 10, 13, 9, 11, 6])
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@torch.inference_mode()
def check_runner(runner: CausalRunner, name: str, width: Width = NATURAL) -> None:
    """Run, fork, step, keep and rewind a few tokens; compare with a fresh forward over them.

    Raises:
        UnsupportedModelError: the model fails or its logits differ by more than its dtype's
            tolerance (relative to the largest logit).
    """
    tokens = [3, 1, 4, 1, 5, 9, 2]
    sequence = -1
    runner.open(sequence, 16, width)
    try:
        runner.run(sequence, tokens[:4])
        runner.rewind(sequence, 3)
        # Apart, so that counting on from the first token's position is wrong for the second.
        ours, other = runner.fork(sequence, [3, 1])
        runner.step(sequence, {other: 7, ours: tokens[3]})
        runner.step(sequence, {ours: tokens[4], other: 8})
        runner.keep(sequence, ours)
        found = runner.run(sequence, tokens[5:]).logits
        ids = torch.tensor([tokens], device=runner.device)
        expected = runner.model(ids, use_cache=False).logits[0, 5:].float()
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be run over a cache that forks: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    finally:
        runner.close(sequence)
    if not expected.isfinite().all():
        raise UnsupportedModelError(
            f"{name} gives logits that are not finite in {runner.model.dtype}: "
            "its weights are broken, or need another dtype"
        )
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    # A comparison that is false for NaN as well.
    if not difference <= TOLERANCE.get(runner.model.dtype, 1e-3):
        raise UnsupportedModelError(
            f"{name} gives other logits over a cache that forks (relative difference "
            f"{difference:.1e}): its attention does not follow masks and positions alone"
        )


@torch.inference_mode()
def invariant_from(runner: CausalRunner) -> int | None:
    """Fewest tokens of a forward from which on this model's logits are batch-invariant here.

    Found by trial: tokens are run in chunks of every size up to 16, and every logit must be
    bit-identical to that of chunks of 16. That depends on the kernels that this machine's libraries
    choose for the model's shapes: some small ones have others for odd numbers of 9 and more.
    """
    count = min(64, runner.positions)
    tokens = [(7 * i * i + 3 * i + 1) % runner.vocabulary for i in range(count)]
    expected = _in_chunks(runner, tokens, [16], Width.fixed(16))
    for least in (1, 4, 8):
        width = Width(least, aligned=True)
        found = (_in_chunks(runner, tokens, sizes, width) for sizes in TRIED)
        if all(torch.equal(logits, expected) for logits in found):
            return least
    return None


def _in_chunks(
    runner: CausalRunner, tokens: list[int], sizes: list[int], width: Width
) -> torch.Tensor:
    sequence = -1
    runner.open(sequence, len(tokens), width)
    try:
        parts, left, size = [], tokens, cycle(sizes)
        while left:
            count = next(size)
            parts.append(runner.run(sequence, left[:count]).logits)
            left = left[count:]
        return torch.cat(parts)
    finally:
        runner.close(sequence)
