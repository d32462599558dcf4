"""A short trial of forking and rewinding on the very model: wrong output is refused, not given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from specbranch.errors import UnsupportedModelError
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.models.loader import one_line
from specbranch.models.padding import FIXED_QUERY_LENGTH, MAX_QUERY_LENGTH, NATURAL, Padding
from specbranch.models.runner import CausalRunner

TRIED_TEXT = 256  # tokens
TRIED_ROWS = 8  # one row alone may be the same by chance
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@torch.inference_mode()
def validate_cache(runner: CausalRunner, name: str, padding: Padding = NATURAL) -> None:
    """Run, fork, step, keep and rewind a few tokens; compare with a fresh forward over them.

    Raises:
        UnsupportedModelError: the model fails or its logits differ by more than its dtype's
            tolerance (relative to the largest logit).
    """
    tokens = [3, 1, 4, 1, 5, 9, 2]
    sequence = -1
    runner.open(sequence, 16, padding)
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


def invariant_from(runner: CausalRunner) -> int | None:
    """Fewest tokens of a forward from which on this model's logits are batch-invariant here.

    Found by trial: tokens are run in chunks of every size up to `MAX_QUERY_LENGTH`, and every
    logit must be
    bit-identical to that of chunks of 16. That depends on the kernels that this machine's libraries
    choose for the model's shapes: some small ones have others for odd numbers of 9 and more. The
    tokens are the last of a text, because attention to few tokens sums few numbers, which gives the
    same in any order.

    None in 16 bits: rounding hides most of what such kernels do, so that a trial would miss it.
    """
    if runner.model.dtype != torch.float32:
        return None
    [expected] = _in_chunks(
        runner, [FIXED_QUERY_LENGTH], Padding.fixed(FIXED_QUERY_LENGTH), rows=MAX_QUERY_LENGTH
    )
    for least in (1, 4, 8):
        padding = Padding(least, MAX_QUERY_LENGTH, aligned=True)
        found = _in_chunks(runner, range(least, MAX_QUERY_LENGTH + 1), padding, TRIED_ROWS)
        if all(torch.equal(logits, expected[: len(logits)]) for logits in found):
            return least
    return None


def same_with(share: CpuAffinity, runner: CausalRunner, padding: Padding) -> bool:
    """Whether this model's logits are bit-identical with the share's threads and the present ones.

    Found by trial. Libraries may divide a sum among threads.
    """
    if runner.device.type != "cpu" or share.threads == torch.get_num_threads():
        return True
    sizes = (1, 5, FIXED_QUERY_LENGTH)
    ours = [*_in_chunks(runner, sizes, padding, TRIED_ROWS)]
    with share.applied():
        theirs = [*_in_chunks(runner, sizes, padding, TRIED_ROWS)]
    return all(map(torch.equal, ours, theirs))


def _in_chunks(
    runner: CausalRunner, sizes: Iterable[int], padding: Padding, rows: int
) -> Iterator[Tensor]:
    """Logits of the same tokens of a text in chunks of each size: of `rows` of them, or a chunk."""
    count = min(TRIED_TEXT, runner.positions)
    tokens = [(7 * i * i + 3 * i + 1) % runner.vocabulary for i in range(count)]
    sequence, start = -1, max(0, count - MAX_QUERY_LENGTH)
    runner.open(sequence, len(tokens), padding)
    try:
        runner.prefill(sequence, tokens[:start])
        for size in sizes:
            runner.rewind(sequence, start)
            tried = tokens[start:][: max(rows, size)]
            chunks = (tried[i : i + size] for i in range(0, len(tried), size))
            yield torch.cat([runner.run(sequence, chunk).logits for chunk in chunks])
    finally:
        runner.close(sequence)
