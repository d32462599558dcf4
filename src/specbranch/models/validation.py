"""Validation of a model before it decodes: wrong output is refused, never given.

A model's configuration is checked first, then its very forwards: over a cache that forks and
rewinds they must give what a fresh forward gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from specbranch.errors import UnsupportedModelError
from specbranch.executors.cpu_affinity import CpuAffinity
from specbranch.models.architecture import borders, check_cache
from specbranch.models.loader import one_line
from specbranch.models.padding import FIXED_QUERY_LENGTH, MAX_QUERY_LENGTH, NATURAL, Padding
from specbranch.models.runner import CausalRunner
from specbranch.models.windows import resized

TRIED_TEXT = 256  # tokens
TRIED_ROWS = 8  # one row alone may be the same by chance
LONGEST_BORDER = 1024  # tokens; a trial beyond it would make loading slow
BESIDE_BORDER = 4  # tokens on either side of a border
TRIED_WINDOW = 8  # tokens; every model's windows are tried at this size, however long they are
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}

_SEQUENCE = -1  # no sequence of a user's has this id


def validate(runner: CausalRunner, name: str, padding: Padding = NATURAL) -> None:
    """Refuse a model that cannot be decoded losslessly: by its configuration, then by trial.

    Every way in calls this before the first text: names, folders, and models in memory.

    Args:
        runner: of the model; its sequences are left as they are.
        name: of the model, for the message.
        padding: of the forwards that will be run.

    Raises:
        UnsupportedModelError: as `check_cache` and `validate_cache`, or forwards of the model
            cannot be padded.
    """
    check_cache(runner.model.config, name)
    if runner.keeps_states and padding.aligned:
        raise UnsupportedModelError(
            f"{name} has recurrent layers, whose states would take in padding: leave padding out"
        )
    validate_cache(runner, name, padding)


@torch.inference_mode()
def validate_cache(runner: CausalRunner, name: str, padding: Padding = NATURAL) -> None:
    """Run short texts over the cache as decoding does, and compare with fresh forwards.

    One text is run, forked, stepped, kept and rewound. One more for each border that the
    configuration names (a window's size, the length that rotary frequencies were made for) is run
    across it. A model with windows does both again while they hold few tokens. At a fixed padding
    a last one is cut in several ways, which must give the same bits.

    Raises:
        UnsupportedModelError: the model fails, its logits differ by more than its dtype's
            tolerance (relative to the largest logit), or they depend on the cut.
    """
    dtype = runner.model.dtype
    try:
        tried = [_forked(runner, padding)]
        tried += [_across(runner, padding, at) for at in _tried_borders(runner)]
        tried += _windowed(runner, padding)
        differences = [_difference(found, expected) for found, expected in tried]
        # A range of lengths comes from `invariant_from`, which tried it.
        fixed = padding.aligned and padding.least == padding.most
        exact = not fixed or _same_however_cut(runner, padding)
    # A model may fail in any way where it is given what it was not made for.
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} cannot be run over a cache that forks: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    if not all(expected.isfinite().all() for _, expected in tried):
        raise UnsupportedModelError(
            f"{name} gives logits that are not finite in {dtype}: "
            "its weights are broken, or need another dtype"
        )
    # A comparison that is false for NaN as well.
    wrong = [d for d in differences if not d <= TOLERANCE.get(dtype, 1e-3)]
    if wrong:
        reason = (
            "its layers do not go on from a state with several tokens"
            if runner.keeps_states
            else "its attention does not follow masks and positions alone"
        )
        raise UnsupportedModelError(
            f"{name} gives other logits over a cache that forks (relative difference "
            f"{wrong[0]:.1e}): {reason}"
        )
    if not exact:
        raise UnsupportedModelError(
            f"{name} is not bit-exact with {padding.most} tokens a forward in {dtype} on "
            f"{runner.device}: its logits depend on how a text is cut into forwards; use "
            "dtype=float32, or padding=None, which is exact up to rounding"
        )


def _forked(runner: CausalRunner, padding: Padding, before: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a text that was forked and rewound, and those of a fresh forward.

    Args:
        before: tokens ahead of those that are.
    """
    tokens = [token % runner.vocabulary for token in (3, 1, 4, 1, 5, 9, 2, 7, 8)]
    tokens, aside = _text(runner, before) + tokens[:7], tokens[7:]
    runner.open(_SEQUENCE, len(tokens) + 9, padding)
    try:
        runner.run(_SEQUENCE, tokens[: before + 4])
        runner.rewind(_SEQUENCE, before + 3)
        # Apart, so that counting on from the first token's position is wrong for the second.
        ours, other = runner.fork(_SEQUENCE, [before + 3, before + 1])
        runner.step(_SEQUENCE, {other: aside[0], ours: tokens[before + 3]})
        stepped = runner.step(_SEQUENCE, {ours: tokens[before + 4], other: aside[1]})
        runner.keep(_SEQUENCE, ours)
        found = torch.cat([stepped[:1], runner.run(_SEQUENCE, tokens[before + 5 :]).logits])
    finally:
        runner.close(_SEQUENCE)
    return found, _fresh(runner, tokens, 3)


def _windowed(runner: CausalRunner, padding: Padding) -> list[tuple[Tensor, Tensor]]:
    """As `_forked` and `_across`, with windows that these texts leave, if the model has any."""
    before, config = runner.windows, runner.model.config
    size = min(TRIED_WINDOW, runner.positions // 2)
    if not before.sizes:
        return []
    with resized(config, before, size) as runner.windows:
        try:
            return [_forked(runner, padding, size), _across(runner, padding, size)]
        finally:
            runner.windows = before


def _tried_borders(runner: CausalRunner) -> list[int]:
    longest = min(LONGEST_BORDER, runner.positions - BESIDE_BORDER)
    return [at for at in borders(runner.model.config) if at <= longest]


def _across(runner: CausalRunner, padding: Padding, border: int) -> tuple[Tensor, Tensor]:
    """As `_forked`, of the last tokens up to a border and of the first ones beyond it."""
    start, end = max(1, border - BESIDE_BORDER), border + BESIDE_BORDER
    tokens = _text(runner, end)
    runner.open(_SEQUENCE, end, padding)
    try:
        runner.prefill(_SEQUENCE, tokens[:start])
        parts = (tokens[start:border], tokens[border:])
        found = [runner.run(_SEQUENCE, part).logits for part in parts]
    finally:
        runner.close(_SEQUENCE)
    # Two forwards: frequencies that follow the length are others on each side.
    expected = [
        _fresh(runner, tokens[:border], border - start),
        _fresh(runner, tokens, end - border),
    ]
    return torch.cat(found), torch.cat(expected)


def _fresh(runner: CausalRunner, tokens: Sequence[int], rows: int) -> Tensor:
    """Logits ``[rows, vocabulary]`` of the last tokens, by a forward that knows no cache."""
    ids = torch.tensor([tokens], device=runner.device)
    logits: Tensor = runner.model(ids, use_cache=False).logits[0, -rows:].float()
    return logits


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, relative to the largest logit."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _same_however_cut(runner: CausalRunner, padding: Padding) -> bool:
    """Whether a text's logits are bit-identical in one forward and in several, all padded alike."""
    count = min(padding.most or FIXED_QUERY_LENGTH, MAX_QUERY_LENGTH)
    cuts = ([count], [1, count - 1], [count // 2, count - count // 2], [1] * min(count, 4))
    whole, *others = _in_cuts(runner, cuts, padding, 2 * MAX_QUERY_LENGTH)
    return all(torch.equal(found, whole[: len(found)]) for found in others)


def invariant_from(runner: CausalRunner) -> int | None:
    """Fewest tokens of a forward from which on this model's logits are batch-invariant here.

    Found by trial: tokens are run in chunks of every size up to `MAX_QUERY_LENGTH`, and every
    logit must be bit-identical to that of chunks of 16. That depends on the kernels that this
    machine's libraries choose for the model's shapes: some small ones have others for odd numbers
    of 9 and more. The tokens are the last of a text, because attention to few tokens sums few
    numbers, which gives the same in any order.

    Returns:
        None where no number is known. In 16 bits there is no trial: rounding hides most of what
        such kernels do, so that a trial would miss it. Nor is anything known of a model that fails
        its trial: `validate` says why it fails.
    """
    if runner.model.dtype != torch.float32 or runner.keeps_states:
        return None
    try:
        return _invariant_from(runner)
    except Exception:  # a model that was not made for such forwards may fail in any way
        return None


def _invariant_from(runner: CausalRunner) -> int | None:
    fixed = Padding.fixed(FIXED_QUERY_LENGTH)
    cut = _equal_parts(FIXED_QUERY_LENGTH, MAX_QUERY_LENGTH)
    [expected] = _in_cuts(runner, [cut], fixed)
    for least in (1, 4, 8):
        padding = Padding(least, MAX_QUERY_LENGTH, aligned=True)
        sizes = range(least, MAX_QUERY_LENGTH + 1)
        found = _in_cuts(runner, [_equal_parts(size, TRIED_ROWS) for size in sizes], padding)
        if all(torch.equal(logits, expected[: len(logits)]) for logits in found):
            return least
    return None


def same_with(share: CpuAffinity, runner: CausalRunner, padding: Padding) -> bool:
    """Whether this model's logits are bit-identical with the share's threads and the present ones.

    Found by trial: libraries may divide a sum among threads.
    """
    if runner.device.type != "cpu" or share.threads == torch.get_num_threads():
        return True
    cuts = [_equal_parts(size, TRIED_ROWS) for size in (1, 5, FIXED_QUERY_LENGTH)]
    ours = [*_in_cuts(runner, cuts, padding)]
    with share.applied():
        theirs = [*_in_cuts(runner, cuts, padding)]
    return all(map(torch.equal, ours, theirs))


def _equal_parts(size: int, rows: int) -> list[int]:
    """Chunks of `size` tokens, the last one shorter: of `rows` tokens in all, or one chunk."""
    total = max(size, rows)
    return [min(size, total - at) for at in range(0, total, size)]


def _in_cuts(
    runner: CausalRunner,
    cuts: Iterable[Sequence[int]],
    padding: Padding,
    length: int = TRIED_TEXT,
) -> Iterator[Tensor]:
    """Logits of a text's last tokens, run in chunks of the sizes of each cut.

    Args:
        cuts: sizes, up to `MAX_QUERY_LENGTH` tokens in all; the same tokens begin every cut.
        length: of the text, in tokens; a model's shorter context shortens it, and the cuts.
    """
    tokens = _text(runner, length)
    start = max(0, len(tokens) - MAX_QUERY_LENGTH)
    runner.open(_SEQUENCE, len(tokens), padding)
    try:
        runner.prefill(_SEQUENCE, tokens[:start])
        for cut in cuts:
            runner.rewind(_SEQUENCE, start)
            ends = accumulate(cut, initial=start)
            chunks = [tokens[a:b] for a, b in pairwise(ends) if a < min(b, len(tokens))]
            yield torch.cat([runner.run(_SEQUENCE, chunk).logits for chunk in chunks])
    finally:
        runner.close(_SEQUENCE)


def _text(runner: CausalRunner, length: int) -> list[int]:
    """Tokens of a text that does not repeat itself soon, at most as many as the context holds."""
    count = min(length, runner.positions)
    return [(7 * i * i + 3 * i + 1) % runner.vocabulary for i in range(count)]
