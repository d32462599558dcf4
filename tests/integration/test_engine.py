"""The engine with many texts: steps, streams of several threads, aborts, lost drafts."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import torch

from specbranch import LLM, SamplingParams
from specbranch.config import SchedulerConfig, SpeculativeConfig
from specbranch.engine.engine import Engine
from specbranch.engine.request import EngineRequest
from specbranch.methods.registry import METHODS
from specbranch.policy.gate import SpeculationGate
from specbranch.token_sequence import FinishReason
from specbranch.workers.drafter import Drafter
from tests.hosted import hosted
from tests.tiny import save_pair_half, tiny_model, tiny_tokenizer

PARAMS = SamplingParams(max_tokens=24, ignore_eos=True)
SPEC = METHODS["specbranch"]


def prompts(count: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(64) for _ in range(draw.randrange(1, 9))] for _ in range(count)]


@pytest.fixture(scope="module")
def llm():
    target, draft = tiny_model("llama", seed=1), tiny_model("llama", seed=1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    with LLM.from_models(target, draft, speculate="always") as made:
        yield made


@pytest.fixture(scope="module")
def texts(llm):
    """Of plain decoding."""
    done = llm.generate(prompts(20), PARAMS, method="autoregressive")
    return [output.outputs[0].token_ids for output in done]


def open_texts(engine: Engine) -> int:
    """On both workers."""
    executors = engine.executors
    return len(hosted(executors.verifier)._texts) + len(hosted(executors.drafter)._trees)


def test_texts_take_turns_and_are_those_of_plain_decoding(llm, texts):
    requests = [llm.engine.add_request(p, PARAMS, method=SPEC) for p in prompts(20)]
    order = []
    while llm.engine.has_unfinished_requests:
        order += [output.request.id for output in llm.engine.step()]
    assert [request.sequence.tokens for request in requests] == texts
    assert sum(request.metrics.fates.accepted for request in requests) > 20
    assert order[:40] != sorted(order[:40])  # they went on side by side
    assert llm.engine.step() == []
    assert open_texts(llm.engine) == 0


def test_no_more_texts_run_than_the_scheduler_allows(llm, texts):
    engine = Engine(llm.engine.executors, llm.engine.models, SchedulerConfig(max_num_seqs=3))
    requests = [engine.add_request(p, PARAMS, method=SPEC) for p in prompts(8)]
    while engine.has_unfinished_requests:
        engine.step()
        assert open_texts(engine) <= 2 * 3
    assert [request.sequence.tokens for request in requests] == texts[:8]


def test_a_wanted_text_gets_room_from_the_running_ones(llm, texts):
    engine = Engine(llm.engine.executors, llm.engine.models, SchedulerConfig(max_num_seqs=1))
    first, second = (engine.add_request(p, PARAMS, method=SPEC) for p in prompts(2))
    engine.step([first])
    while not second.finished:
        engine.step([second])
    assert first.finished
    assert [first.sequence.tokens, second.sequence.tokens] == texts[:2]


def test_an_aborted_text_keeps_its_tokens_and_leaves_nothing_behind(llm, texts):
    request = llm.engine.add_request(prompts(1)[0], PARAMS, method=SPEC)
    llm.engine.step()
    llm.engine.abort(request)
    llm.engine.abort(request)
    assert request.output().outputs[0].finish_reason == FinishReason.ABORT
    tokens = request.sequence.tokens
    assert 0 < len(tokens) < 24
    assert tokens == texts[0][: len(tokens)]
    assert not llm.engine.has_unfinished_requests
    assert open_texts(llm.engine) == 0


def pair(kind: str, folder: Path) -> LLM:
    target, draft = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    if kind != "process":
        return LLM.from_models(target, draft, executor=kind, speculate="always")
    names = [
        save_pair_half(folder / name, model, tiny_tokenizer())
        for name, model in (("target", target), ("draft", draft))
    ]
    return LLM(*names, executor=kind, speculate="always", dtype="float32")


@pytest.mark.parametrize("kind", ["inline", "thread", "process"])
def test_streams_of_two_threads_with_random_aborts(kind, texts, tmp_path):
    """Every text is the offline one, or its beginning where it was aborted."""
    found: dict[int, tuple[list[int], bool]] = {}
    errors: list[BaseException] = []

    def caller(llm: LLM, indexes: list[int], seed: int) -> None:
        draw = random.Random(seed)
        try:
            streams: list[tuple[int, EngineRequest]] = []
            for index in indexes:
                request = llm.request(prompts(20)[index], PARAMS)
                streams.append((index, request))
                llm.engine.submit(request)
            while streams:  # interleaved: now one, now another goes on
                at = draw.randrange(len(streams))
                index, request = streams[at]
                llm.engine.step([request])
                if draw.random() < 0.02:
                    llm.engine.abort(request)
                if request.finished:
                    aborted = request.sequence.finish_reason == FinishReason.ABORT
                    found[index] = (list(request.sequence.tokens), aborted)
                    del streams[at]
        except BaseException as error:
            errors.append(error)

    with pair(kind, tmp_path) as llm:
        halves = [list(range(0, 20, 2)), list(range(1, 20, 2))]
        threads = [
            threading.Thread(target=caller, args=(llm, half, seed))
            for seed, half in enumerate(halves)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        assert not errors
        assert sorted(found) == list(range(20))
        for index, (tokens, aborted) in found.items():
            assert tokens == texts[index] if not aborted else texts[index][: len(tokens)] == tokens
        assert any(aborted for _, aborted in found.values())
        assert any(not aborted for _, aborted in found.values())
        # Each worker answers after all that was asked of it before, so nothing is left behind.
        again = llm.generate(prompts(20)[:2], PARAMS)
        assert [output.outputs[0].token_ids for output in again] == texts[:2]
        assert not llm.engine.has_unfinished_requests


def failing(monkeypatch, method, error, times):
    """Have the drafter's method fail so many times."""
    left, original = [times], getattr(Drafter, method)

    def fail(self, *args):
        if left[0] > 0:
            left[0] -= 1
            raise error
        return original(self, *args)

    monkeypatch.setattr(Drafter, method, fail)


@pytest.mark.parametrize("method", ["open", "draft", "branch"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: no idea")])
def test_a_draft_that_fails_on_one_text_rests_for_that_text(
    llm, texts, monkeypatch, caplog, method, error
):
    with monkeypatch.context() as patch:
        failing(patch, method, error, times=1)
        first, second = llm.generate(prompts(2), PARAMS)
    assert [first.outputs[0].token_ids, second.outputs[0].token_ids] == texts[:2]
    assert first.speculation.reason is not None
    assert second.speculation.drafted
    assert second.speculation.reason is None
    assert llm.draft is not None
    [warning] = caplog.messages
    assert "this text goes on without the draft" in warning
    assert first.metrics.committed == 24
    assert open_texts(llm.engine) == 0


def test_a_draft_that_fails_on_every_text_is_given_up(texts, monkeypatch):
    target, draft = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    with LLM.from_models(target, draft, speculate="always") as llm:
        failing(monkeypatch, "branch", RuntimeError("no"), times=99)
        done = llm.generate(prompts(6), PARAMS)
        assert [output.outputs[0].token_ids for output in done] == texts[:6]
        assert llm.draft is None
        assert done[-1].speculation.reason is not None
        assert not done[-1].speculation.drafted


def test_fates_add_up_where_the_draft_is_lost(llm, texts, monkeypatch):
    """Every token that the drafter delivered has one fate."""
    delivered = []
    original = Drafter.branch

    def branch(self, *args):
        if len(delivered) == 3:
            raise MemoryError
        found = original(self, *args)
        delivered.append(sum(len(branch) for branch in found[0]))
        return found

    chains = []
    drafting = Drafter.draft

    def draft(self, *args):
        found = drafting(self, *args)
        chains.append(len(found[0]))
        return found

    monkeypatch.setattr(Drafter, "branch", branch)
    monkeypatch.setattr(Drafter, "draft", draft)
    [output] = llm.generate(prompts(1), PARAMS)
    assert output.outputs[0].token_ids == texts[0]
    assert output.metrics.fates.total == sum(delivered) + sum(chains)


def test_a_text_longer_than_the_drafts_context_goes_on_without_the_draft():
    target = tiny_model("llama", seed=1, max_position_embeddings=128)
    draft = tiny_model("llama", seed=1, max_position_embeddings=64)
    params = SamplingParams(max_tokens=110, ignore_eos=True)
    with LLM.from_models(target, None) as alone:
        [expected] = alone.generate([[5, 9, 3, 14]], params)
    with LLM.from_models(target, draft, speculate="always") as llm:
        [output] = llm.generate([[5, 9, 3, 14]], params)
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids
    assert output.speculation.drafted
    assert "outgrown the draft's context of 64 tokens" in str(output.speculation.reason)


def test_texts_that_run_when_the_draft_dies_go_on_without_it(texts, monkeypatch):
    """One text loses the drafter for all; those that were open on it know, the next has another."""
    target, draft = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    with LLM.from_models(target, draft, speculate="always") as llm:
        executors = llm.engine.executors
        fresh = LLM.from_models(target, draft, speculate="always").engine.executors.drafter
        engine = Engine(
            executors, llm.engine.models, restart_drafter=lambda: fresh, config=llm.config
        )
        first, second = (engine.add_request(p, PARAMS) for p in prompts(2))
        engine.step([first])
        engine.step([second])
        executors.drafter.close()
        while not first.finished or not second.finished:
            engine.step()
        third = engine.add_request(prompts(3)[2], PARAMS)
        while not third.finished:
            engine.step()
    assert [r.sequence.tokens for r in (first, second, third)] == texts[:3]
    assert all("was closed" in str(request.reason) for request in (first, second))
    assert third.reason is None
    assert third.output().speculation.drafted


def test_a_text_outlives_a_draft_that_was_started_again(texts):
    """Its drafter is another one now, which does not know it."""
    target, draft = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    with LLM.from_models(target, draft, speculate="always") as llm:
        executors = llm.engine.executors
        fresh = LLM.from_models(target, draft, speculate="always").engine.executors.drafter
        engine = Engine(
            executors, llm.engine.models, restart_drafter=lambda: fresh, config=llm.config
        )
        first, second = (engine.add_request(p, PARAMS) for p in prompts(2))
        engine.step([first])
        engine.step([second])
        executors.drafter.close()
        engine.step([second])  # it finds out
        third = engine.add_request(prompts(3)[2], PARAMS)
        engine.step([third])  # the draft is started again
        while engine.has_unfinished_requests:
            engine.step()
    assert [r.sequence.tokens for r in (first, second, third)] == texts[:3]
    assert "started again" in str(first.reason)
    assert third.reason is None


@pytest.mark.parametrize("method", ["specbranch", "lookup"])
def test_a_prompt_that_is_interrupted_is_closed_on_both_workers(llm, monkeypatch, method):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("specbranch.models.runner.CausalRunner.prefill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([*prompts(1), [5, 6, 7]], PARAMS, method=method)
    assert open_texts(llm.engine) == 0
    assert not hosted(llm.engine.executors.verifier)._runner._states


def test_an_output_says_that_the_draft_was_turned_off(llm, monkeypatch):
    """A text whose draft does not pay ends with the reason, and nothing is printed in between."""
    # By the clock of a busy machine the rest might seem slow, and end.
    monkeypatch.setattr(SpeculationGate, "_slower_than_with_draft", False)
    config = SpeculativeConfig()
    request = llm.engine.add_request(prompts(1)[0], PARAMS, config=config)
    llm.engine.step()
    tuning = llm.engine.executors.tuning(config, greedy=True)
    tuning._gate.paused, tuning._gate.reason, tuning._gate._plain_left = True, "it was slow", 1000
    while not request.finished:
        llm.engine.step()
    assert request.output().speculation.reason == "it was slow"
