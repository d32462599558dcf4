"""``specbranch draft report``: what a draft gains for a target, and on what hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from specbranch.bench.contenders import Pair
from specbranch.executors.latency_profile import Devices, ModelLatency, Profile
from specbranch.models.loader import ModelSpec, load_model
from specbranch.sampling_params import SamplingParams
from specbranch.training.pair.card import Agreement, agreement

GAMMAS = range(1, 17)


def agreements(
    pair: Pair, draft: ModelSpec, prompts: Mapping[str, Sequence[list[int]]], max_tokens: int
) -> dict[str, Agreement]:
    """A draft against the target's greedy text, by domain.

    Args:
        pair: both models, loaded.
        draft: the draft, which is loaded once more: here it reads whole texts at once.
        prompts: token ids, by domain.
        max_tokens: most tokens of a text.
    """
    target = pair.sequential.plain()
    model = load_model(draft)
    params = SamplingParams(max_tokens=max_tokens)
    found = {}
    for domain, several in prompts.items():
        outputs = target.generate(list(several), params, progress=True)
        texts = [torch.tensor(output.outputs[0].token_ids) for output in outputs]
        found[domain] = agreement(model, [list(ids) for ids in several], texts)
    return found


def together(found: Mapping[str, Agreement]) -> Agreement:
    """All domains as one."""
    return Agreement(
        torch.cat([each.matches for each in found.values()]),
        torch.cat([each.confidences for each in found.values()]),
    )


def accepted_length(matches: torch.Tensor, gamma: int) -> float:
    """Tokens that a verification commits, M, with chains of γ drafted after the target's own text.

    Args:
        matches: bool ``[tokens]``, whether the draft's likeliest token is the target's.
        gamma: γ.
    """
    right = matches.tolist()
    place = calls = 0
    while place < len(right):
        kept = 0
        while kept < gamma and place + kept < len(right) and right[place + kept]:
            kept += 1
        place += kept + 1
        calls += 1
    return len(right) / max(calls, 1)


def sequential_gain(alpha: float, gamma: int, target: ModelLatency, draft: ModelLatency) -> float:
    """Speed of SpS over plain decoding, if tokens are accepted alike and independently.

    Tokens by Leviathan et al. 2023, arXiv 2211.17192, Eq. 1; a verification of γ + 1 tokens takes
    what it takes, not what a plain forward does.

    Args:
        alpha: chance that a draft token is accepted.
        gamma: γ.
        target, draft: what forwards take, in seconds, one model at a time.
    """
    tokens = sum(alpha**place for place in range(gamma + 1))
    seconds = gamma * draft.seconds(1) + draft.call + target.seconds(gamma + 1) + target.call
    return tokens * (target.seconds(1) + target.call) / seconds


@dataclass(frozen=True)
class BreakEven:
    """From what acceptance on a draft pays, with one device for both models.

    Attributes:
        alpha: chance of acceptance from which SpS is faster than plain decoding; above 1: never.
        gamma: the γ that is best for the draft's own chance.
        gain: SpS over plain decoding with it.
    """

    alpha: float
    gamma: int
    gain: float

    @classmethod
    def of(cls, alpha: float, target: ModelLatency, draft: ModelLatency) -> BreakEven:
        """For a draft with that chance of acceptance, and these latencies."""

        def best(chance: float) -> tuple[float, int]:
            return max((sequential_gain(chance, g, target, draft), g) for g in GAMMAS)

        least = next((a / 100 for a in range(101) if best(a / 100)[0] > 1), 1.01)
        gain, gamma = best(alpha)
        return cls(least, gamma, gain)


def alone(profile: Profile) -> tuple[ModelLatency, ModelLatency]:
    """What forwards take where a model has all the hardware while the other one waits."""
    return profile.target.alone or profile.target, profile.draft.alone or profile.draft


def a_device_each(profile: Profile) -> Profile:
    """The same machine twice: neither model slows the other one down."""
    target, draft = alone(profile)
    return replace(
        profile,
        target=replace(target, alone=None),
        draft=replace(draft, alone=None),
        devices=Devices(),
        source=f"{profile.source}; a machine each",
    )
