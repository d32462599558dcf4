"""One budget of branches for a batch of texts, spent by expected value per time."""

from __future__ import annotations

from collections.abc import Sequence

from specbranch.policy.branching import Outcome
from specbranch.policy.latency import LatencyLine, best_width


def allot(planned: Sequence[Sequence[Outcome]], budget: int) -> list[list[Outcome]]:
    """Keep the most probable outcomes of all texts together.

    Args:
        planned: outcomes of each text, in any order.
        budget: most outcomes to keep, 0 or more.

    Returns:
        For each text, the outcomes that are kept, in the order given. Of equally probable ones, the
        earlier text's come first, and within a text the earlier ones.
    """
    places = [(row, i) for row, outcomes in enumerate(planned) for i in range(len(outcomes))]
    places.sort(key=lambda place: -planned[place[0]][place[1]].probability)
    kept: list[list[Outcome]] = [[] for _ in planned]
    for row, i in sorted(places[:budget]):
        kept[row].append(planned[row][i])
    return kept


def select_growing(values: Sequence[float], line: LatencyLine | None) -> list[int]:
    """The branches to grow in the next draft step, over all texts of the batch.

    Args:
        values: of each branch, the estimated probability that the target writes all its tokens.
        line: latency of a draft step by its branches; None if all branches are to grow.

    Returns:
        Indices of the branches. Without a line they are all, in the order given. With a line they
        are the most valuable ones, in falling order of value (equal ones in the order given), as
        many as give the most value per second.
    """
    if line is None or not values:
        return list(range(len(values)))
    ranked = sorted(range(len(values)), key=lambda i: -values[i])
    return ranked[: best_width([values[i] for i in ranked], line)]
