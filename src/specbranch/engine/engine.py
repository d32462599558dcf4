"""The engine: texts come in, advance in steps, and go out, whatever the draft does meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from specbranch.config import SchedulerConfig, SpeculativeConfig
from specbranch.engine.constraints import sendable
from specbranch.engine.driver import DrafterFailedError, Driver
from specbranch.engine.executor_pair import ExecutorPair
from specbranch.engine.inputs import Prompt
from specbranch.engine.intake import make_request
from specbranch.engine.models import EngineModels
from specbranch.engine.request import EngineRequest, StepOutput
from specbranch.engine.scheduler import Scheduler
from specbranch.engine.supervisor import Supervisor
from specbranch.errors import ExecutorError
from specbranch.executors.base import Executor
from specbranch.methods.base import MethodContext
from specbranch.methods.registry import PLAIN, MethodSpec
from specbranch.metrics import Round
from specbranch.sampling_params import SamplingParams
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import OpenText
from specbranch.workers.requests import (
    CloseRequest,
    PromptLogprobsRequest,
    RewindRequest,
)


class Engine:
    """Decodes many texts in steps. All methods may be called from any thread.

    Args:
        executors: of the pair. Engines may share them.
        models: what runs on them.
        scheduler: which texts run.
        restart_drafter: starts a lost drafter again; None where that cannot be done.
        config: how to decode requests that do not say it.
    """

    def __init__(
        self,
        executors: ExecutorPair,
        models: EngineModels,
        scheduler: SchedulerConfig | None = None,
        restart_drafter: Callable[[], Executor[Drafter]] | None = None,
        config: SpeculativeConfig | None = None,
    ) -> None:
        self.executors = executors
        self.models = models
        self.config = config or SpeculativeConfig()
        self.supervisor = Supervisor(executors, restart_drafter)
        self._scheduler = Scheduler(scheduler or SchedulerConfig())
        self._driver = Driver(executors)

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        method: MethodSpec | None = None,
        config: SpeculativeConfig | None = None,
    ) -> EngineRequest:
        """Have a prompt wait for its turn; arguments and errors as for `make_request`."""
        request = self.make_request(prompt, params, method=method, config=config)
        self.submit(request)
        return request

    def make_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        method: MethodSpec | None = None,
        config: SpeculativeConfig | None = None,
    ) -> EngineRequest:
        """A request that `submit` can take.

        Args:
            prompt: what `engine.inputs` takes.
            params: how it is sampled; greedily by default.
            method: by default that of the configuration.
            config: how much to draft; by default the engine's.

        Raises:
            InputError: the prompt is empty, no prompt, or leaves no room in the context; stop
                strings without a tokenizer; or parameters that do not fit the models.
        """
        return make_request(
            next(self.executors.ids), prompt, self.models, params, method, config or self.config
        )

    def submit(self, request: EngineRequest) -> None:
        """Have a request wait for its turn."""
        with self.executors.lock:
            self._scheduler.add(request)

    def abort(self, request: EngineRequest) -> None:
        """End a text where it is, and free its caches. Without effect on a finished one."""
        with self.executors.lock:
            self._release(request)
            request.abort()

    @property
    def has_unfinished_requests(self) -> bool:
        return self._scheduler.has_unfinished

    def step(self, wanted: Collection[EngineRequest] | None = None) -> list[StepOutput]:
        """Advance one text by one round; an empty list says that none is left.

        Args:
            wanted: advance one of these; by default the running texts take turns.

        Raises:
            ExecutorError: the verifier failed. The text it failed on is aborted.
        """
        with self.executors.lock:
            request = self._scheduler.schedule(wanted)
            if request is None:
                return []
            now = self.executors.verifier.now
            started = now()
            try:
                if request.method is None:
                    self._open(request)
                done = self._advance(request)
            except BaseException as error:
                self._release(request)
                request.abort()
                request.error = error
                if wanted is None or request in wanted:
                    raise
                return self.step(wanted)  # it is for whoever waits for that text
            request.absorb(done)
            request.metrics.seconds += now() - started
            if request.finished:
                self._note_pause(request)
                self._release(request)
            return [StepOutput(request, done)]

    @contextmanager
    def opened(self, request: EngineRequest) -> Iterator[None]:
        """Have a request open on the workers, for measurements that send requests of their own."""
        with self.executors.lock:
            self._scheduler.running.append(request)
            try:
                self._open(request)
                yield
            finally:
                self._release(request)

    def _open(self, request: EngineRequest) -> None:
        """Read the prompt into the workers' caches, and make the method's state machine."""
        executors, spec = self.executors, request.spec
        if spec.needs_draft:
            self.supervisor.before_text()
            request.reason = self._why_no_draft(request)
            request.drafter = executors.drafter if request.reason is None else None
        request.opened = True
        sequence, config = request.sequence, request.config
        # What H-RAD learned of greedy texts says less than the noise that both models choose by.
        judged = request.drafting and (not request.params.coupled or config.epsilon != "auto")
        judged &= spec.uses_hrad and config.use_hrad and self.models.hrad
        text = OpenText(
            sequence.id,
            sequence.prompt,
            request.params,
            len(sequence.prompt) + sequence.max_tokens,
            self.models.target.vocabulary,
            sequence.stop_ids,
            config.branch_tokens,
            request.padding,
            judged=judged,
            constraints=request.constraints,
        )
        follows = request.constraints.grammar is not None
        vocabulary = self.models.grammar_vocabulary if follows else None
        reading = None
        # The prompt is most work for the target, and next to none for the draft.
        executors.set_verifier_affinity(overlapped=False, anew=True)
        if request.drafter is not None and self.models.draft is not None:
            executors.set_drafter_affinity(spec.overlaps)
            # The draft first: it reads the prompt while the target may keep this thread busy.
            capacity = min(text.capacity, self.models.draft.positions)
            drafted = replace(text, capacity=capacity, params=sendable(text.params))
            reading = request.drafter.submit(
                executors.opening(request.drafter, drafted, vocabulary)
            )
        opening = executors.opening(executors.verifier, text, vocabulary)
        executors.verifier.submit(opening).result()
        if request.params.prompt_logprobs is not None:
            scored = executors.verifier.submit(PromptLogprobsRequest(request.id))
            request.scored_prompt = scored.result()
        if reading is not None:
            try:
                reading.result()
            except Exception as error:
                self._go_on_without_draft(request, self.supervisor.failed(error))
        self._make_method(request, spec if request.drafting or not spec.needs_draft else PLAIN)

    def _why_no_draft(self, request: EngineRequest) -> str | None:
        """Why the draft cannot begin this text; None if it can."""
        if self.executors.drafter is None or self.models.draft is None:
            return self.supervisor.reason or "there is no draft"
        return self._beyond_draft(request)

    def _why_no_longer(self, request: EngineRequest) -> str | None:
        """Why the draft cannot go on with this text; None if it can."""
        if request.drafter is not self.executors.drafter:
            return self.supervisor.reason or "the draft was started again, without this text"
        return self._beyond_draft(request)

    def _beyond_draft(self, request: EngineRequest) -> str | None:
        """Why a text has outgrown the draft's context; None if it has not."""
        draft, sequence = self.models.draft, request.sequence
        assert draft is not None
        whole = len(sequence.prompt) + sequence.max_tokens
        ahead = 2 * request.config.longest + 2  # a chain, and branches after it
        if min(whole, sequence.length + ahead) <= draft.positions:
            return None
        return f"the text has outgrown the draft's context of {draft.positions} tokens"

    def _make_method(self, request: EngineRequest, spec: MethodSpec) -> None:
        tuning = self.executors.tuning(request.config, request.params.greedy)
        request.method = spec.make(
            MethodContext(request.sequence, request.config, tuning, self.executors.divides_cores)
        )

    def _advance(self, request: EngineRequest) -> Round:
        """One round, by plain decoding where the draft gave no answer."""
        if request.drafting and (reason := self._why_no_longer(request)) is not None:
            self._go_on_without_draft(request, reason)
        assert request.method is not None
        try:
            return self._driver.round(request.method)
        except DrafterFailedError as failed:
            if self.executors.closed:
                raise failed.error from None
            self._go_on_without_draft(request, self.supervisor.failed(failed.error))
            if failed.done is not None:
                return failed.done
        assert request.method is not None
        return self._driver.round(request.method)

    def _go_on_without_draft(self, request: EngineRequest, reason: str) -> None:
        """Close the text on the drafter, and decode it plainly from the last committed token."""
        request.reason = reason
        self._close_on_drafter(request)
        if request.method is None or request.finished:
            return
        request.drop_method()
        self.executors.set_verifier_affinity(overlapped=False)
        sequence = request.sequence
        self.executors.verifier.submit(RewindRequest(sequence.id, sequence.length)).result()
        self._make_method(request, PLAIN)

    def _note_pause(self, request: EngineRequest) -> None:
        """Say in the output that the draft was turned off, where that is how the text ended."""
        if request.drafting and request.reason is None:
            tuning = self.executors.tuning(request.config, request.params.greedy)
            request.reason = tuning.paused_reason

    def _release(self, request: EngineRequest) -> None:
        """Forget a request, and close its text on the workers."""
        if not self._scheduler.remove(request):
            return
        request.drop_method()
        if self.executors.closed or not request.opened:
            return
        if request.drafting and request.finished:
            self.supervisor.succeeded()
        self._close_on_drafter(request)
        # A verifier that failed has said so already, and its text is gone with it.
        with suppress(ExecutorError):
            self.executors.verifier.submit(CloseRequest([request.id])).result()

    def _close_on_drafter(self, request: EngineRequest) -> None:
        drafter, request.drafter = request.drafter, None
        if drafter is None or drafter is not self.executors.drafter:
            return
        try:
            drafter.submit(CloseRequest([request.id])).result()
        except ExecutorError as error:
            request.reason = request.reason or self.supervisor.failed(error)
