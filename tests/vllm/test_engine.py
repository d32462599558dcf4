"""vLLM with the proposer against vLLM without, on the toy pair."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vllm.engine_run import AT_A_TIME, ENVIRONMENT, SAMPLINGS

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.timeout(3600),
]
ROOT = Path(__file__).parents[2]
BINS = 20
# For the four chi-square tests together at most one false alarm in a thousand runs.
ERROR_RATE = 0.001 / len(SAMPLINGS)


def run(mode: str, folder: Path) -> dict[str, Any]:
    """The findings of one engine; only one is alive at a time."""
    file = folder / f"{mode}.json"
    environment = os.environ | ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.exists():
        environment["LD_PRELOAD"] = str(openmp)
    command = [sys.executable, "-m", "tests.vllm.engine_run", mode, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(file.read_text())
    return found | {"said": done.stdout + done.stderr}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("plain", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("drafted", tmp_path_factory.mktemp("drafted"))


@pytest.mark.parametrize("at_a_time", AT_A_TIME)
def test_greedy_texts_are_vllms_own(
    plain: dict[str, Any], drafted: dict[str, Any], at_a_time: int
) -> None:
    assert drafted["greedy"][str(at_a_time)] == plain["greedy"][str(at_a_time)]
    counted = drafted["metrics"][str(at_a_time)]
    print(at_a_time, counted, drafted["seconds"][str(at_a_time)], plain["seconds"][str(at_a_time)])
    assert counted["steps"] > 0


def test_requests_were_preempted(drafted: dict[str, Any]) -> None:
    print("preemptions", drafted["preemptions"])
    assert drafted["preemptions"] > 0


def test_some_drafts_are_accepted(drafted: dict[str, Any]) -> None:
    assert sum(found["accepted_tokens"] for found in drafted["metrics"].values()) > 0


@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampled_tokens_are_distributed_as_the_targets(drafted: dict[str, Any], name: str) -> None:
    """Each token's share of its own distribution is uniform, whatever stands before it."""
    shares = shares_of(drafted["sampled"][name], SAMPLINGS[name])
    counts = torch.histc(shares, BINS, 0.0, 1.0)
    expected = len(shares) / BINS
    statistic = ((counts - expected) ** 2 / expected).sum()
    chance = torch.special.gammaincc(torch.tensor((BINS - 1) / 2), statistic / 2).item()
    accepted = drafted["metrics"][name]["accepted_tokens"]
    print(
        f"{name}: chi-square {statistic:.1f}, p {chance:.3f}, {len(shares)} tokens, "
        f"{accepted:.0f} of them drafted"
    )
    assert chance > ERROR_RATE


def shares_of(texts: list[list[list[int]]], sampling: dict[str, Any]) -> torch.Tensor:
    """Where each token lies in the target's distribution: the likelier tokens' weight before it,
    and a random part of its own.
    """
    from specbranch.models.loader import ModelSpec, load_model
    from specbranch.sampling.pipeline import LogitsPipeline
    from specbranch.sampling_params import SamplingParams

    model = load_model(ModelSpec("target", dtype="float32", eager=True))
    pipeline = LogitsPipeline.of(SamplingParams(temperature=0.8, **sampling))
    generator = torch.Generator().manual_seed(0)
    shares = []
    for prompt, written in texts:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
        ranked = pipeline(logits.float()).exp().sort(-1, descending=True)
        place = ranked.indices == torch.tensor(written)[:, None]
        own = ranked.values[place]
        assert own.min() > 0, "a token that the parameters exclude"
        before = (ranked.values.cumsum(-1))[place] - own
        shares.append(before + own * torch.rand(len(own), generator=generator))
    return torch.cat(shares).clamp(0, 1)


def test_a_soak_with_aborts_and_a_drafter_that_is_killed_loses_and_mixes_nothing(
    plain: dict[str, Any], drafted: dict[str, Any]
) -> None:
    both = plain["soak"].keys() & drafted["soak"].keys()
    assert len(both) > 10
    for name in both:
        assert drafted["soak"][name] == plain["soak"][name], name
    assert drafted["metrics"]["soak"]["restarts"] >= 1
    assert drafted["said"].count("vLLM goes on without drafts") <= 2
    assert drafted["left_open"] <= 1  # the last request, whose end no further step tells
