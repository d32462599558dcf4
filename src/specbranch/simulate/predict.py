"""The real algorithm on a virtual clock: what each method would gain on some hardware."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from specbranch.bench.contenders import (
    PLAIN,
    SPECBRANCH,
    Contender,
    Pair,
)
from specbranch.bench.run import WARM_UP
from specbranch.engine.timeline import target_idle
from specbranch.executors.latency_profile import Devices, Profile
from specbranch.llm import LLM
from specbranch.methods.registry import METHODS
from specbranch.metrics import Metrics, Round
from specbranch.sampling_params import SamplingParams

PROMPTS = Path(__file__).parent / "prompts.jsonl"
Gamma = int | Literal["auto"]
GAMMAS = (2, 4, 8, 12)  # of which a method with a fixed γ gets the best


@dataclass(frozen=True)
class Prediction:
    """One row of the table.

    Attributes:
        tokens_per_second: with the reading of the prompts.
        over_plain: ratio to plain decoding.
        accepted: M.
        rollback: RB.
        idle: share of the decoding time in which the target verifies nothing.
        devices: that the method takes.
        per_device: ratio to plain decoding, each per device that it takes.
    """

    label: str
    tokens_per_second: float
    over_plain: float
    accepted: float
    rollback: float
    idle: float
    devices: int
    per_device: float

    @classmethod
    def of(
        cls,
        label: str,
        speed: float,
        plain: float,
        metrics: Metrics,
        idle: float,
        method: str,
        devices: Devices,
    ) -> Prediction:
        """A row from what was counted; `speed` and plain decoding's are in tokens/s."""
        count, ratio = devices_of(method, devices), speed / plain
        return cls(
            label,
            speed,
            ratio,
            metrics.mean_accepted_length,
            metrics.rollback_rate,
            idle,
            count,
            ratio * devices.plain / count,
        )


def devices_of(method: str, devices: Devices) -> int:
    """How many a method takes."""
    if method == "autoregressive":
        return devices.plain
    return devices.parallel if METHODS[method].overlaps else devices.sequential


def predict(
    llm: LLM,
    profile: Profile,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    gammas: Sequence[int] = GAMMAS,
    lookup: bool = False,
) -> list[Prediction]:
    """What plain decoding, SpS and PEARL at their best γ, and SpecBranch come to.

    Every method starts with nothing learned and a short warm-up, as in a benchmark.

    Args:
        llm: the pair on virtual executors with this profile.
        prompts: as tokens.
        gammas: γ to try, where the `LLM`'s options leave it open.
        lookup: end with prompt lookup, which takes no draft.
    """
    pair, options = Pair(llm, llm), llm.config
    if options.gamma != "auto":
        gammas = (options.gamma,)
    lineups = [pair.lineup(replace(options, gamma=gamma)) for gamma in gammas]
    found: dict[str, Prediction] = {}
    with tqdm(
        total=len(prompts) * (2 * len(gammas) + 3 + lookup), desc="texts", leave=False
    ) as progress:

        def row(contender: Contender) -> Prediction:
            done = _run(contender, profile, prompts, params, progress.update)
            speed = done.metrics.tokens_per_second
            return Prediction.of(
                contender.label,
                speed,
                found[PLAIN].tokens_per_second if found else speed,
                done.metrics,
                target_idle(done.rounds),
                contender.method,
                profile.devices,
            )

        def best(method: str) -> Prediction:
            baselines = [c for lineup in lineups for c in lineup if c.method == method]
            return max(map(row, baselines), key=lambda found: found.tokens_per_second)

        lineup = pair.lineup(options)
        found[PLAIN] = row(_named(PLAIN, lineup))
        rest = [best("speculative"), best("pearl"), row(_named(SPECBRANCH, lineup))]
        rest.append(row(pair.as_in_the_paper()))
        if lookup:
            rest.append(row(Contender("lookup", "prompt lookup", llm, "lookup", options)))
        return [found[PLAIN], *rest]


def _named(name: str, lineup: Sequence[Contender]) -> Contender:
    return next(contender for contender in lineup if contender.name == name)


@dataclass(frozen=True)
class _Done:
    metrics: Metrics
    rounds: list[list[Round]]


def _run(
    contender: Contender,
    profile: Profile,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    progress: Callable[[], object] = lambda: None,
) -> _Done:
    contender.llm.reset()
    contender.generate(prompts[0], WARM_UP)
    outputs = []
    for prompt in prompts:
        outputs.append(contender.generate(prompt, params))
        progress()
    metrics: Metrics = reduce(add, (output.metrics for output in outputs))
    if contender.method == "autoregressive" and profile.plain is not None:
        alone = profile.target.alone or profile.target
        metrics.seconds += metrics.target_calls * (profile.plain - alone.seconds(1))
    return _Done(metrics, [output.rounds for output in outputs])


@dataclass(frozen=True)
class Sweep:
    """SpecBranch's speed ÷ plain decoding's, ``ratios[i][j]`` of the i-th c and the j-th γ."""

    cs: list[float]
    gammas: list[Gamma]
    ratios: list[list[float]]


def sweep(
    load: Callable[[Profile], LLM],
    profiles: Sequence[tuple[float, Profile]],
    gammas: Sequence[Gamma],
    prompts: Callable[[LLM], Sequence[list[int]]],
    params: SamplingParams,
) -> Sweep:
    """SpecBranch by c and γ.

    Args:
        load: the pair on virtual executors with a profile.
        profiles: with the c of each.
        prompts: as tokens of the pair.
    """
    ratios = []
    for c, profile in tqdm(profiles, desc="c", leave=False):
        with load(profile) as llm:
            encoded, lineup = prompts(llm), Pair(llm, llm).lineup
            plain = _run(_named(PLAIN, lineup(llm.config)), profile, encoded, params)
            row = []
            for gamma in tqdm(gammas, desc=f"γ at c = {c:g}", leave=False):
                options = replace(llm.config, gamma=gamma)
                ours = _run(_named(SPECBRANCH, lineup(options)), profile, encoded, params)
                row.append(ours.metrics.tokens_per_second / plain.metrics.tokens_per_second)
            ratios.append(row)
    return Sweep([c for c, _ in profiles], [*gammas], ratios)
