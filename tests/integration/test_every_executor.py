"""The pair on every kind of executor: the same text, whatever becomes of the draft's process."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from specbranch import LLM, SamplingParams
from specbranch.config import SpeculativeConfig
from specbranch.engine.timeline import target_idle
from specbranch.errors import ExecutorError, InputError
from specbranch.executors.virtual import Profile
from specbranch.methods.registry import METHODS
from specbranch.models.runner import CausalRunner
from tests.hosted import hosted
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer

PROMPTS = ["def quicksort(xs):", "The city of "]
FIXED = SpeculativeConfig(gamma=8, epsilon=0.3, branching="point")
GREEDY = SamplingParams(max_tokens=40)
PARAMS = {"greedy": GREEDY, "sampled": SamplingParams(max_tokens=40, temperature=0.8, seed=5)}


@pytest.fixture(scope="module")
def small(small_pair):
    """`LLM` with the tiny pair."""
    return partial(LLM, *small_pair)


@pytest.fixture(scope="module")
def texts(small):
    """Of plain decoding on inline executors, by the name of their parameters."""
    with small(executor="inline") as llm:
        return {
            name: [
                o.outputs[0].token_ids
                for o in llm.generate(PROMPTS, params, method="autoregressive")
            ]
            for name, params in PARAMS.items()
        }


@pytest.mark.parametrize("executors", ["inline", "thread", "process", "virtual"])
def test_every_lane_gives_the_same_text(executors, texts, small):
    profile = Profile.of_ratio(8, branch_cost=0.03) if executors == "virtual" else None
    with small(executor=executors, profile=profile) as llm:
        assert llm.executor == executors
        for name, expected in texts.items():
            for method in sorted(set(METHODS) - {"autoregressive"}):
                for options in (SpeculativeConfig(), FIXED):
                    if method == "specbranch" or options is FIXED:
                        done = llm.generate(PROMPTS, PARAMS[name], method=method, config=options)
                        assert [o.outputs[0].token_ids for o in done] == expected
        # Plain decoding on all cores, and overlapped decoding after it.
        plain = llm.plain().generate(PROMPTS, GREEDY)
        assert all(o.metrics.target_calls == 40 for o in plain)
        again = llm.generate(PROMPTS, GREEDY)
        assert [o.outputs[0].token_ids for o in again] == texts["greedy"]


def test_a_target_that_rounds_by_threads_keeps_its_share(texts, monkeypatch, caplog, small):
    monkeypatch.setattr(
        "specbranch.workers.factory.same_with", lambda share, runner, padding: False
    )
    with small(executor="process") as llm:
        assert llm.affinity.alone == llm.affinity.target
        done = llm.generate(PROMPTS, GREEDY)
    assert [o.outputs[0].token_ids for o in done] == texts["greedy"]
    assert "target rounds differently with other numbers of threads" in caplog.messages[0]


def test_rejection_sampling_in_processes_gives_the_text_of_inline_lanes(small):
    """Its messages hold the draft's distributions."""
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=1, acceptance="rejection")
    found = []
    for executors in ("inline", "process"):
        with small(executor=executors, gamma=8, epsilon=0.1, k_max=10, speculate="always") as llm:
            found.append(llm.generate(PROMPTS[0], params)[0].outputs[0].token_ids)
    assert found[0] == found[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("after", [0, 1, 12])
def test_a_lost_draft_costs_no_text(number, after, texts, caplog, small):
    """Killed or frozen before the first token, after it, or amid the text."""
    with small(executor="process", executor_timeout=2, speculate="always") as llm:
        expected = "died: its process was killed" if number == signal.SIGKILL else "did not answer"
        draft = llm.engine.executors.drafter._process
        request = llm.request(PROMPTS[0], GREEDY)
        if not after:
            os.kill(draft.pid, number)
        for _ in llm.stream_request(request):
            if len(request.sequence.tokens) >= after and draft.poll() is None:
                os.kill(draft.pid, number)
        assert request.sequence.tokens == texts["greedy"][0]
        assert request.metrics.committed == 40
        draft.wait(timeout=10)
        # The draft is started again for the next text, without a further word.
        [again] = llm.generate(PROMPTS[1], GREEDY)
        assert again.outputs[0].token_ids == texts["greedy"][1]
        assert again.speculation.drafted and again.speculation.reason is None
        assert f"the draft executor {expected}" in str(request.output().speculation.reason)
    [warning] = caplog.records
    assert f"the draft executor {expected}" in warning.getMessage()
    assert "going on with plain decoding" in warning.getMessage()


def test_ctrl_c_ends_a_generation_with_one_line(interruptible):
    """The terminal interrupts the whole group of processes; what was generated is there."""
    command = [sys.executable, "-m", "specbranch", "generate", PROMPTS[0], "--lanes", "process"]
    program = subprocess.Popen(
        [*command, "--max-tokens", "900", "--ignore-eos", "--speculate", "always"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = program.stdout.read(len(PROMPTS[0]) + 20)
    os.killpg(program.pid, signal.SIGINT)
    rest, errors = program.communicate(timeout=60)
    assert program.returncode == 130
    assert errors == "interrupted\n"
    assert begun.startswith(PROMPTS[0])
    assert "tokens/s" in rest.splitlines()[-1]


def test_a_lost_target_is_an_error_that_keeps_the_text(monkeypatch, small):
    def full(*args):
        raise MemoryError

    with small(executor="process") as llm:
        request = llm.request(PROMPTS[0], GREEDY)
        stream = llm.stream_request(request)
        next(stream)
        with monkeypatch.context() as patch:
            patch.setattr(CausalRunner, "run", full)
            with pytest.raises(ExecutorError, match="the target executor ran out of memory"):
                list(stream)
        assert len(request.output().outputs[0].token_ids) >= 1
        assert len(llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].token_ids) >= 1


def test_the_program_keeps_its_own_share_of_the_machine(small):
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    with small(executor="process", speculate="always") as llm:
        stream = llm.stream(PROMPTS[0], GREEDY)
        next(stream)  # an overlapped round: the target had its share alone
        assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before
        stream.close()


@pytest.mark.parametrize("executors", ["inline", "process"])
def test_a_stream_that_outlives_its_llm_ends_in_order(executors, caplog, small):
    with small(executor=executors) as llm:
        ended, stream = (llm.stream(PROMPTS[0], GREEDY) for _ in range(2))
        next(ended)
        next(stream)
    ended.close()
    with pytest.raises(ExecutorError, match=r"the (target|draft) executor was closed"):
        list(stream)
    assert not caplog.records


def test_a_prompt_interrupted_while_it_is_read_leaves_nothing_behind(monkeypatch, small):
    def interrupted(*args):
        raise KeyboardInterrupt

    with small(executor="process") as llm:
        expected = llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text
        with monkeypatch.context() as patch:
            patch.setattr(CausalRunner, "prefill", interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate(PROMPTS[0], GREEDY)
        assert not hosted(llm.engine.executors.verifier)._runner._states
        assert llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text == expected


def test_errors_of_a_model_come_from_its_process(tmp_path):
    target, draft = (
        save_pair_half(tmp_path / name, tiny_model("llama"), tiny_tokenizer())
        for name in ("target", "draft")
    )
    (tmp_path / "draft" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"the weights of .*draft are broken"):
        LLM(target=target, draft=draft, executor="process")


def memory(pid):
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_generations_leak_nothing(tmp_path):
    """200 texts: no growth of memory beyond 5 %, no process and no shared memory left behind."""
    target, draft = (
        save_pair_half(tmp_path / name, tiny_model("llama", seed=seed), tiny_tokenizer())
        for name, seed in (("target", 0), ("draft", 1))
    )
    shared = set(os.listdir("/dev/shm"))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    with LLM(target=target, draft=draft, executor="process") as llm:
        children = [llm.engine.executors.drafter._process.pid]
        everyone = [os.getpid(), *children]
        for _ in range(50):
            llm.generate([[3, 1, 4, 1, 5]], params)
        before = [memory(pid) for pid in everyone]
        for _ in range(200):
            llm.generate([[3, 1, 4, 1, 5]], params)
        for old, pid in zip(before, everyone, strict=True):
            assert memory(pid) <= 1.05 * old
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert set(os.listdir("/dev/shm")) <= shared


def test_virtual_time_is_deterministic_and_overlaps(small):
    """With a target ten times slower than the draft, and with branches that cost nothing."""
    params = SamplingParams(max_tokens=60)

    def run(method, c):
        with small(profile=Profile.of_ratio(c), executor="virtual", gamma="auto", epsilon=0) as llm:
            return llm.generate(PROMPTS[0], params, method=method)[0]

    first, second = run("specbranch", 10), run("specbranch", 10)
    assert first.rounds == second.rounds
    assert first.metrics == second.metrics
    plain = run("autoregressive", 10)
    # 60 forwards of ten steps, after the prompt's, which the profile makes as dear as any other.
    assert plain.metrics.seconds == pytest.approx((60 + 1) * 10e-3)
    # A round lasts as long as its verification, unless the draft had to draft alone before it.
    for done in first.rounds[1:]:
        serial = done.drafting.seconds if done.drafting else 0
        assert done.seconds == pytest.approx(serial + done.verification.seconds, abs=1.1e-3)
    assert target_idle([first.rounds], steady=True) == pytest.approx(0, abs=1e-9)
    # SpS, whose models take turns, waits a draft step for every token drafted.
    sps = run("speculative", 10)
    waited = sum(done.drafting.seconds for done in sps.rounds[1:])
    assert target_idle([sps.rounds]) * sum(d.seconds for d in sps.rounds[1:]) == pytest.approx(
        waited
    )


def test_virtual_lanes_need_a_profile():
    with pytest.raises(InputError, match="virtual executors take their times from a profile"):
        LLM(executor="virtual")
    with pytest.raises(InputError, match="process executors load their models by name"):
        LLM.from_models(tiny_model("llama"), None, executor="process")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("executors", "draft_device"), [("thread", "cuda"), ("process", "cuda"), ("process", "cpu")]
)
def test_lanes_on_a_gpu_give_the_same_text(executors, draft_device):
    """Two streams of one GPU, two processes on one GPU, and a draft on the CPU."""
    found = []
    for kind in ("inline", executors):
        with LLM(executor=kind, target_device="cuda", draft_device=draft_device) as llm:
            for params in PARAMS.values():
                done = llm.generate(PROMPTS, params)
                found.append([o.outputs[0].token_ids for o in done])
    assert found[:2] == found[2:]
