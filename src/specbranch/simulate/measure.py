"""A profile of this machine, from what the executors took while they really generated.

The methods run side by side, prompt by prompt; what a forward takes in its place, with the other
executor at work, the caches as warm as they are then and Python around it, is what a prediction
needs.
Where the executors share cores, sequential methods say what each model costs alone.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

import numpy as np
import torch
import transformers
from tqdm import tqdm

from specbranch import __version__
from specbranch.bench.contenders import Contender, Pair
from specbranch.bench.run import WARM_UP
from specbranch.config import MOST_BRANCHES, MOST_GAMMA, SpeculativeConfig
from specbranch.errors import InputError
from specbranch.executors.latency_profile import Devices, ModelLatency, Profile
from specbranch.hardware import cpu_name
from specbranch.llm import LLM
from specbranch.metrics import Round
from specbranch.policy.latency import OUTLIER, LatencyLine
from specbranch.sampling_params import SamplingParams

ENOUGH = 8  # forwards of one size, to say what they take
MAX_QUERY_LENGTH = MOST_GAMMA + 1  # tokens of a verification
LENGTHS = (65, 257, 769)  # tokens of the prompts that reading is measured by
READINGS = 3  # of each
ALWAYS = SpeculativeConfig(speculate="always")


@dataclass(frozen=True)
class _Burst:
    """A draft call: so many steps, so many tokens in all of them."""

    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class _Fit:
    """What draft calls take: a part for each call, and a line for each step."""

    call: float
    step: LatencyLine


def measure(
    pair: Pair, prompts: Sequence[list[int]], tokens: int = 96, repeats: int = 2
) -> Profile:
    """Measure a pair on its executors.

    Args:
        prompts: as tokens.
        tokens: to generate for each, by every method.
        repeats: of the whole.

    Raises:
        InputError: no draft, or executors that do not work at the same time.
    """
    if pair.parallel.draft is None:
        raise InputError("a profile is of a pair: give a draft model")
    if pair.parallel.executor == "inline":
        raise InputError(
            "the models would work sequentially here (inline executors), and a profile is of both "
            "at the same time: use --executors process or thread"
        )
    plain = _way("plain", pair.sequential.plain(), "autoregressive", ALWAYS)
    exact = _way("exact", pair.sequential, "autoregressive", ALWAYS)
    sps = [
        _way(f"SpS {gamma}", pair.sequential, "speculative", replace(ALWAYS, gamma=gamma))
        for gamma in (1, 3, 7, 15)
    ]
    both = [
        _way("PEARL", pair.parallel, "pearl", ALWAYS),
        _way("SpecBranch", pair.parallel, "specbranch", ALWAYS),
        pair.as_in_the_paper(),
        *(_way(f"even {k}", pair.parallel, "specbranch", _even(k)) for k in (2, 6, MOST_BRANCHES)),
    ]
    rounds = _generate([plain, exact, *sps, *both], prompts, tokens, repeats)

    sequential = [r for c in sps for r in rounds[c.name]]
    serial = _capped(_gaps(rounds[exact.name]))
    target = ModelLatency(_by_size([*sequential, *rounds[exact.name]]), serial)
    steps = _fit(sequential, wide=False)
    step = steps.step.seconds(1)
    draft = ModelLatency({1: step, MOST_BRANCHES: step}, steps.call + _capped(_gaps(sequential)))
    reading, drafted = _readings(pair.sequential, prompts[0], target, draft)
    target = replace(target, forward={**target.forward, **reading})
    draft = replace(draft, forward={**draft.forward, **drafted})

    overlapped = [r for c in both for r in rounds[c.name] if r.branching and r.verification]
    wide = _fit(overlapped, wide=True)
    message = _capped(_gaps(overlapped))
    beside = {k: wide.step.seconds(k) for k in (1, MOST_BRANCHES)}
    slower = beside[1] / draft.forward[1]
    beside |= {n: max(slower * s, beside[MOST_BRANCHES]) for n, s in drafted.items()}
    return Profile(
        ModelLatency(_by_size(overlapped), message, target),
        ModelLatency(beside, wide.call + message, draft),
        plain=_verification(rounds[plain.name]) + _capped(_gaps(rounds[plain.name])) - serial,
        devices=_devices(pair.parallel),
        source=f"measured: {pair.parallel.target.name} + {pair.parallel.draft.name}",
        machine=_machine(pair.parallel),
    )


def _way(name: str, llm: LLM, method: str, options: SpeculativeConfig) -> Contender:
    return Contender(name, name, llm, method, options)


def _verification(rounds: Iterable[Round]) -> float:
    """Seconds of a verification, whatever its size."""
    return _capped([r.verification.seconds for r in rounds if r.verification])


def _even(k: int) -> SpeculativeConfig:
    """So many branches in most rounds, which the cost model alone would seldom grow."""
    return replace(ALWAYS, k_max=k, branching="even", retrieval=False)


def _generate(
    contenders: Sequence[Contender], prompts: Sequence[list[int]], tokens: int, repeats: int
) -> dict[str, list[Round]]:
    """Rounds by contender, without the first of each text, in which the draft catches up."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    for contender in contenders:
        contender.generate(prompts[0], WARM_UP)
    found: dict[str, list[Round]] = defaultdict(list)
    with tqdm(total=repeats * len(prompts) * len(contenders), desc="measuring") as progress:
        for _ in range(repeats):
            for prompt in prompts:
                for contender in contenders:
                    found[contender.name] += contender.generate(prompt, params).rounds[1:]
                    progress.update()
    return found


def _readings(
    llm: LLM, prompt: Sequence[int], target: ModelLatency, draft: ModelLatency
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds that each model takes to read so many tokens at once, by how many."""
    params = SamplingParams(max_tokens=1, ignore_eos=True)
    fitting = [n for n in LENGTHS if n < llm.max_model_len]
    reading, drafted = {}, {}
    for length in tqdm(fitting, desc="reading"):
        text = (list(prompt) * length)[:length]
        taken: dict[str, list[float]] = {"autoregressive": [], "speculative": []}
        for _ in range(READINGS):
            for method, seconds in taken.items():
                [output] = llm.generate([text], params, method=method)
                seconds.append(output.metrics.seconds)
        alone, with_draft = (median(seconds) for seconds in taken.values())
        # Besides there is the one token's forward, and a call for each model.
        reading[length - 1] = max(alone - target.seconds(1) - 2 * target.call, target.seconds(1))
        drafted[length - 1] = max(with_draft - alone - 2 * draft.call, draft.seconds(1))
    return reading, drafted


def _by_size(rounds: Iterable[Round]) -> dict[int, float]:
    """Seconds of verifications by the number of tokens: of all sizes seen often enough.

    A straight line through them stands in for the widest, if need be.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for verification in (r.verification for r in rounds if r.verification):
        if len(verification.forwards) == 1:
            found[verification.forwards[0]].append(verification.seconds)
    means = {n: _capped(seconds) for n, seconds in sorted(found.items())}
    known = {n: means[n] for n in means if len(found[n]) >= ENOUGH} or means
    if len(known) > 1:
        weights = [len(found[n]) ** 0.5 for n in known]
        each, base = np.polyfit([*known], [*known.values()], 1, w=weights)
        line = LatencyLine(float(base), max(0.0, float(each)))
        if max(known) < MAX_QUERY_LENGTH:
            known[MAX_QUERY_LENGTH] = max(line.seconds(MAX_QUERY_LENGTH), known[max(known)])
    return known


def _gaps(rounds: Iterable[Round]) -> list[float]:
    """Seconds of each round in which no model worked, for each call that was waited for.

    They are the messages', and the decoder's own.
    """
    gaps = []
    for done in rounds:
        beside = max(s.seconds for s in (done.verification, done.branching) if s)
        if done.drafting:
            gaps.append(max(0.0, done.seconds - done.drafting.seconds - beside) / 2)
        else:
            gaps.append(max(0.0, done.seconds - beside))
    return gaps


def _capped(values: Sequence[float]) -> float:
    """The mean; what is far above the median was the machine's doing."""
    most = OUTLIER * median(values)
    return mean(min(value, most) for value in values)


def _fit(rounds: Iterable[Round], wide: bool) -> _Fit:
    """Least squares over the draft calls of these rounds.

    Args:
        wide: whether steps had several branches.
    """
    spans = [s for r in rounds for s in (r.drafting, r.branching) if s is not None]
    bursts = [_Burst(len(s.forwards), sum(s.forwards), s.seconds) for s in spans]
    rows = np.array([(1, b.steps, b.tokens if wide else b.steps) for b in bursts], dtype=float)
    taken = np.array([b.seconds for b in bursts])
    capped = taken
    for _ in range(4):
        call, base, each = np.linalg.lstsq(rows, capped, rcond=None)[0]
        if wide and each < 0:
            return _fit(rounds, wide=False)
        capped = np.minimum(taken, OUTLIER * np.maximum(rows @ (call, base, each), 1e-9))
    if not wide:
        base, each = base + each, 0.0
    return _Fit(max(0.0, float(call)), LatencyLine(float(base), float(each)))


def _devices(llm: LLM) -> Devices:
    """Cores, or GPUs where the models are on any."""
    assert llm.draft is not None
    models = (llm.target.device, llm.draft.device)
    if "cpu" in models:
        cores = llm.affinity.alone.threads
        return Devices("core", cores, cores, cores)
    both = len(set(models))
    return Devices("GPU", 1, both, both)


def _machine(llm: LLM) -> dict[str, str]:
    assert llm.draft is not None
    kinds = ("compiled" if model.compiled else "eager" for model in (llm.target, llm.draft))
    target, draft = kinds
    return {
        "cpu": cpu_name(),
        "target": f"{llm.target.device}, {llm.target.dtype}, {target}, {llm.affinity.target}",
        "draft": f"{llm.draft.device}, {llm.draft.dtype}, {draft}, {llm.affinity.draft}",
        "alone": str(llm.affinity.alone),
        "executors": llm.executor,
        "padding": str(llm.padding),
        "versions": f"specbranch {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}",
    }
