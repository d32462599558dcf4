"""One run of vLLM over the toy pair, in a process of its own; its findings as JSON.

    python -m tests.vllm.engine_run plain|drafted FILE

Chunks of prompts are short and the cache is small, so that prompts are read in parts and requests
are preempted. The drafter of the second half is killed now and then.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbranch.zoo import BUNDLED

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that the proposer can be looked at
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # However slow this machine is at the moment, drafts are to be verified.
    "SPECBRANCH_VLLM_SPECULATE": "always",
}
PROMPTS = int(os.environ.get("PROMPTS", "40"))
TOKENS = int(os.environ.get("TOKENS", "64"))
SOAK = int(os.environ.get("SOAK", "60"))
SAMPLED = int(os.environ.get("SAMPLED", "96"))
AT_A_TIME = (1, 4, 16)
GAMMA = 5
SAMPLINGS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "top_k": {"top_k": 20},
    "top_p": {"top_p": 0.9},
    "both": {"top_k": 20, "top_p": 0.9},
}
STARTS = (
    "def add(a, b):\n    return a",
    "Question: Tom has {n} apples and buys {m}. How many has he now?\nAnswer:",
    "Once upon a time there were {n} little birds. They",
    "for i in range({n}):\n    print(i)\nfor j in range({m}):\n",
    "The {n} of them went to the river, and the {m} others stayed at home.",
)


def prompts(count: int, seed: int = 0) -> list[str]:
    """Texts of different lengths, some of which begin alike."""
    chance = random.Random(seed)
    texts = []
    for i in range(count):
        parts = [
            chance.choice(STARTS).format(n=i % 7, m=i) for _ in range(chance.choice([1, 1, 4]))
        ]
        texts.append("\n".join(parts))
    return texts


def make_engine(drafted: bool) -> Any:
    from vllm import LLM

    speculation: dict[str, Any] = {}
    if drafted:
        speculation = {
            "speculative_config": {
                "method": "custom_class",
                "model": "specbranch.vllm.Proposer",
                "num_speculative_tokens": GAMMA,
            },
            "additional_config": {"specbranch": {"draft": str(BUNDLED["draft"])}},
        }
    return LLM(
        str(BUNDLED["target"]),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=16,
        max_num_batched_tokens=96,
        enforce_eager=True,
        block_size=32,
        num_gpu_blocks_override=20,
        disable_log_stats=False,
        **speculation,
    )


def proposer_of(engine: Any) -> Any:
    core = engine.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner.drafter


def generate(engine: Any, texts: Sequence[str], params: Any, at_a_time: int) -> list[list[int]]:
    found: list[list[int]] = []
    for start in range(0, len(texts), at_a_time):
        out = engine.generate(texts[start : start + at_a_time], params, use_tqdm=False)
        found += [list(one.outputs[0].token_ids) for one in out]
    return found


def soak(engine: Any, proposer: Any | None) -> dict[str, list[int]]:
    """Random arrivals and aborts; the drafter is killed twice. Texts of those that ended."""
    from vllm import SamplingParams

    chance = random.Random(7)
    waiting = [
        (f"soak{i}", text, (1, 2, 20, 60)[i % 4]) for i, text in enumerate(prompts(SOAK, seed=1))
    ]
    kills = {SOAK // 3, 2 * SOAK // 3}
    running: set[str] = set()
    done: dict[str, list[int]] = {}
    core = engine.llm_engine
    while waiting or core.has_unfinished_requests():
        while waiting and len(running) < 24 and chance.random() < 0.5:
            name, text, most = waiting.pop(0)
            core.add_request(name, text, SamplingParams(temperature=0, max_tokens=most))
            running.add(name)
            if proposer is not None and len(waiting) in kills:
                kills.discard(len(waiting))
                kill(proposer)
        if running and chance.random() < 0.02:
            name = chance.choice(sorted(running))
            core.abort_request([name])
            running.discard(name)
        for out in core.step():
            if out.finished and out.outputs[0].finish_reason != "abort":
                done[out.request_id] = list(out.outputs[0].token_ids)
                running.discard(out.request_id)
    return done


def kill(proposer: Any) -> None:
    """End the drafter's process, if there is one at the moment."""
    if (link := proposer._coordinator.link) is not None:
        os.kill(link.pid, signal.SIGKILL)


def main() -> None:
    from vllm import SamplingParams

    mode, file = sys.argv[1], Path(sys.argv[2])
    engine = make_engine(mode == "drafted")
    proposer = proposer_of(engine) if mode == "drafted" else None
    findings: dict[str, Any] = {"greedy": {}, "seconds": {}, "metrics": {}, "sampled": {}}

    def note(name: str) -> None:
        if proposer is not None:
            counted = proposer._coordinator.metrics
            findings["metrics"][name] = {
                **counted,
                "hit_rate": counted.hit_rate,
                "mean_acceptance_length": counted.mean_acceptance_length,
            }
            counted.update(dict.fromkeys(counted, 0.0))

    greedy = SamplingParams(temperature=0, max_tokens=TOKENS)
    for at_a_time in AT_A_TIME:
        begun = time.perf_counter()
        texts = prompts(PROMPTS)
        findings["greedy"][str(at_a_time)] = generate(engine, texts, greedy, at_a_time)
        findings["seconds"][str(at_a_time)] = time.perf_counter() - begun
        note(str(at_a_time))
    if mode == "drafted":
        for name, more in SAMPLINGS.items():
            params = SamplingParams(temperature=0.8, max_tokens=32, ignore_eos=True, **more)
            texts = prompts(SAMPLED, seed=2)
            outputs = engine.generate(texts, params, use_tqdm=False)
            findings["sampled"][name] = [
                [list(one.prompt_token_ids), list(one.outputs[0].token_ids)] for one in outputs
            ]
            note(name)
    findings["soak"] = soak(engine, proposer)
    note("soak")
    findings["preemptions"] = next(
        metric.value for metric in engine.get_metrics() if metric.name == "vllm:num_preemptions"
    )
    if proposer is not None:
        findings["left_open"] = len(proposer._coordinator.sessions)
        proposer.close()
    file.write_text(json.dumps(findings))


if __name__ == "__main__":
    main()
