"""The methods' rounds over recorded acceptance, without a model.

A recording has, for every position of a generated text, how many tokens a verification started
there would commit: those of the draft that are accepted, and the target's own. Each chain is taken
to be as good as the one recorded at its first position, also where it was drafted ahead.

Speeds converge to `theory`'s where acceptance is geometric; SpecBranch is its round of one branch
point. A recording knows the draft's best guesses alone, so whether the target's token is among the
candidates at the branch point is drawn with a given probability.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specbranch.bench.contenders import LABELS, PLAIN
from specbranch.config import MOST_GAMMA
from specbranch.errors import InputError
from specbranch.executors.latency_profile import ModelLatency, Profile
from specbranch.metrics import Fates, Metrics
from specbranch.prompts import read_jsonl
from specbranch.simulate.predict import Prediction

Recording = Sequence[int]  # tokens that a verification at each position would commit
ONE_POINT = "SpecBranch, one point"


def read_recordings(file: Path, column: str, limit: int | None = None) -> list[list[int]]:
    """Recordings of a file, one a row.

    Args:
        column: of the rows, such as `eagle`.
        limit: only the first so many rows.

    Raises:
        InputError: the file cannot be read, or a row has no such column of counts of 1 or more.
    """
    found = []
    for number, row in enumerate(read_jsonl(file), start=1):
        if limit is not None and number > limit:
            break
        counts = row.get(column)
        if not isinstance(counts, list):
            named = ", ".join(name for name, value in row.items() if isinstance(value, list))
            raise InputError(f"{file}, row {number}: no column '{column}' (there are: {named})")
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise InputError(
                f"{file}, row {number}: '{column}' must be counts of committed tokens, 1 or more"
            )
        if counts:
            found.append(counts)
    if not found:
        raise InputError(f"{file} has no recorded positions")
    return found


@dataclass
class Course:
    """What a method has come to, in virtual time.

    Attributes:
        verifying: seconds in which the target verified.
    """

    metrics: Metrics = field(default_factory=Metrics)
    verifying: float = 0.0

    def add(self, committed: int, seconds: float, verifying: float, fates: Fates) -> None:
        """Take in a round."""
        self.metrics.committed += committed
        self.metrics.target_calls += 1
        self.metrics.seconds += seconds
        self.metrics.fates += fates
        self.verifying += verifying

    @property
    def idle(self) -> float:
        """CpuAffinity of the time in which the target verified nothing."""
        return 1 - self.verifying / self.metrics.seconds


def plain_rounds(recordings: Iterable[Recording], profile: Profile) -> Course:
    """One token a forward."""
    course, target = Course(), profile.target.alone or profile.target
    seconds = target.seconds(1) if profile.plain is None else profile.plain
    for text in recordings:
        for _ in text:
            course.add(1, seconds + target.call, seconds, Fates())
    return course


def sps_rounds(recordings: Iterable[Recording], profile: Profile, gamma: int) -> Course:
    """Draft γ tokens, then verify them."""
    course = Course()
    target = profile.target.alone or profile.target
    draft = profile.draft.alone or profile.draft
    verifying = target.call + target.seconds(gamma + 1)
    for text in recordings:
        place = 0
        while place < len(text):
            right = _right(text, place, gamma)
            fates = Fates(accepted=right, rolled_back=gamma - right)
            committed = min(right + 1, len(text) - place)
            course.add(committed, _steps(draft, gamma) + verifying, verifying, fates)
            place += committed
    return course


def pearl_rounds(recordings: Iterable[Recording], profile: Profile, gamma: int) -> Course:
    """γ tokens are drafted beside each verification, and wait while all before them are right."""
    course = Course()
    drafting = _steps(profile.draft, gamma)
    for text in recordings:
        place, waiting = 0, False
        while place < len(text):
            right = _right(text, place, gamma)
            verified = gamma if waiting else 1
            verifying = profile.target.call + profile.target.seconds(verified)
            if waiting:  # post-verify: γ − 1 tokens, and the first that is drafted meanwhile
                committed, kept = min(right + 1, gamma), right == gamma
                accepted = right
                lost = 0 if kept else gamma - 1 - right + gamma
            else:  # pre-verify: the first alone
                committed, kept = 1, right > 0
                accepted, lost = int(kept), 0 if kept else gamma
            fates = Fates(accepted=accepted, rolled_back=lost)
            committed = min(committed, len(text) - place)
            course.add(committed, max(drafting, verifying), verifying, fates)
            place += committed
            waiting = kept
    return course


def specbranch_rounds(
    recordings: Iterable[Recording],
    profile: Profile,
    gamma: int,
    hit: float,
    branches: int,
    seed: int = 0,
) -> Course:
    """γ tokens are verified beside branches for the token after them (`theory`'s rounds).

    Args:
        hit: probability that the target's token after an accepted chain is a candidate.
        branches: candidates at the branch point.
        seed: of those draws.
    """
    course, draws = Course(), random.Random(seed)
    serial = _steps(profile.draft, gamma)
    # A step for the candidates, and γ with all of them.
    branching = _steps(profile.draft, 1) + gamma * profile.draft.seconds(branches)
    verifying = profile.target.call + profile.target.seconds(gamma + 1)
    for text in recordings:
        place, survived = 0, False
        while place < len(text):
            right = _right(text, place, gamma)
            seconds = max(branching, verifying) + (0.0 if survived else serial)
            survived = right == gamma and draws.random() < hit
            lost = 0 if survived else gamma - right + gamma + 1
            fates = Fates(right + survived, lost, hedged=(branches - 1) * (gamma + 1))
            committed = min(right + 1, len(text) - place)
            course.add(committed, seconds, verifying, fates)
            place += committed
    return course


def compare_rounds(
    recordings: Sequence[Recording],
    profile: Profile,
    hit: float,
    branches: int,
    gamma: int | None = None,
) -> list[Prediction]:
    """Plain decoding, and the three methods, each at its best γ if none is given."""
    gammas = range(1, MOST_GAMMA + 1) if gamma is None else (gamma,)
    plain = plain_rounds(recordings, profile)

    def best(label: str, method: str, run: Callable[[int], Course]) -> Prediction:
        courses = {gamma: run(gamma) for gamma in gammas}
        best = max(courses, key=lambda gamma: courses[gamma].metrics.tokens_per_second)
        return row(f"{label}, γ = {best}", method, courses[best])

    def row(label: str, method: str, course: Course) -> Prediction:
        metrics = course.metrics
        return Prediction.of(
            label,
            metrics.tokens_per_second,
            plain.metrics.tokens_per_second,
            metrics,
            course.idle,
            method,
            profile.devices,
        )

    return [
        row(LABELS[PLAIN], "autoregressive", plain),
        best("SpS", "speculative", lambda gamma: sps_rounds(recordings, profile, gamma)),
        best("PEARL", "pearl", lambda gamma: pearl_rounds(recordings, profile, gamma)),
        best(
            ONE_POINT,
            "specbranch",
            lambda gamma: specbranch_rounds(recordings, profile, gamma, hit, branches),
        ),
    ]


def _right(text: Recording, place: int, gamma: int) -> int:
    """How many of γ tokens drafted at a place are accepted."""
    return min(text[place] - 1, gamma)


def _steps(draft: ModelLatency, gamma: int) -> float:
    """Seconds of a call that drafts so many tokens on one branch."""
    return draft.call + gamma * draft.seconds(1)
