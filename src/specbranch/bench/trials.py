"""Rounds of k branches of which nothing is committed, so that they can be run again and again.

They make the requests of `engine.driver`, verify ‖ branch, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from specbranch.config import MOST_GAMMA, SpeculativeConfig
from specbranch.engine.executor_pair import ExecutorPair
from specbranch.engine.request import EngineRequest
from specbranch.executors.base import Executor
from specbranch.llm import LLM
from specbranch.methods.registry import METHODS
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import TokenSequence
from specbranch.workers.drafter import Drafter
from specbranch.workers.messages import BranchText, CommitUpdate, Draft, DraftText, VerifyText
from specbranch.workers.requests import (
    BranchRequest,
    CacheSizeRequest,
    DraftRequest,
    RewindRequest,
    VerifyRequest,
)

CHAIN = 6  # tokens verified in a trial: about what a round has
TRIALS = 4  # for each text
STEPS = 5  # of the branch calls that draft steps are timed in: they fit beside a verification
# Of a trial's text, never ended early, so that every branch grows in every step.
ROOM = CHAIN + MOST_GAMMA + 4
PARAMS = SamplingParams(max_tokens=ROOM, ignore_eos=True)


@dataclass
class Trials:
    """What trials of one k found: see `branch_costs.BranchCost`.

    Attributes:
        burst: seconds of a branch call of `STEPS` steps on the draft executor.
    """

    planning: list[float] = field(default_factory=list)
    burst: list[float] = field(default_factory=list)
    message: list[float] = field(default_factory=list)
    slow_down: list[float] = field(default_factory=list)
    kv_bytes: list[float] = field(default_factory=list)
    kv_share: list[float] = field(default_factory=list)
    kv_reserved: list[float] = field(default_factory=list)

    def run(self, llm: LLM, prompt: list[int], config: SpeculativeConfig) -> None:
        """Trials after a prompt, or as much of it as leaves room for a round."""
        spec = METHODS["specbranch"]
        room = llm.max_model_len - ROOM
        request = llm.engine.make_request(prompt[:room], PARAMS, method=spec, config=config)
        with llm.engine.opened(request):
            self._rounds(request, llm.engine.executors, config)

    def _rounds(
        self, request: EngineRequest, executors: ExecutorPair, config: SpeculativeConfig
    ) -> None:
        sequence, drafter = request.sequence, executors.drafter
        assert drafter is not None
        executors.set_verifier_affinity(overlapped=True)
        executors.set_drafter_affinity(overlapped=True)
        asked = DraftText(sequence.id, CommitUpdate(sequence.length), CHAIN)
        [chain] = drafter.submit(DraftRequest([asked])).result()
        trial = _Trial(sequence, executors, drafter, config, chain)
        trial.round(steps=0)  # the first one has the draft read the end of its chain
        for _ in range(TRIALS):
            alone = trial.verify_alone()
            self.planning.append(trial.round(steps=0).drafting)
            self.burst.append(trial.round(STEPS).drafting)
            whole = trial.round(MOST_GAMMA, stop=True)
            self.message.append(whole.message)
            self.slow_down.append(whole.verifying / alone)
            self._weigh(sequence, executors, drafter)

    def _weigh(
        self, sequence: TokenSequence, executors: ExecutorPair, drafter: Executor[Drafter]
    ) -> None:
        """Take in the caches' sizes as a round left them."""
        target = executors.verifier.submit(CacheSizeRequest(sequence.id)).result()
        draft = drafter.submit(CacheSizeRequest(sequence.id)).result()
        without = draft.token * (len(sequence.prompt) + sequence.max_tokens)
        self.kv_bytes.append(draft.branches)
        self.kv_share.append(draft.branches / (sequence.length * (draft.token + target.token)))
        self.kv_reserved.append(draft.allocated - without)


@dataclass(frozen=True)
class _Times:
    """Seconds of one round: on the drafter's executor, on the verifier's, on the way."""

    drafting: float
    verifying: float
    message: float


@dataclass
class _Trial:
    """Rounds after one text. After each, both workers forget what it did."""

    text: TokenSequence
    executors: ExecutorPair
    drafter: Executor[Drafter]
    config: SpeculativeConfig
    chain: Draft

    def verify_alone(self) -> float:
        """Seconds of the verification with the drafter idle."""
        verifying = self.executors.verifier.submit(self._verification)
        verifying.result()
        self._rewind()
        return verifying.span.seconds

    def round(self, steps: int, stop: bool = False) -> _Times:
        """Verify ‖ branch, the driver's requests in the driver's order.

        Args:
            steps: of the draft.
            stop: the branches when the chain is verified.
        """
        drafter = self.drafter
        branch = BranchText(
            self.text.id,
            CommitUpdate(self.text.length + len(self.chain)),
            self.text.remaining - 1,
            steps,
            self.config.branches,
            self.config.branching,
        )
        submitted = drafter.now()
        branching = drafter.submit(BranchRequest([branch]))
        verifying = self.executors.verifier.submit(self._verification)
        verifying.result()
        if stop:
            branching.stop()
        waiting = drafter.now()
        branching.result()
        seen = drafter.now()
        self._rewind()
        began, ended = branching.span.start, max(branching.span.end, waiting)
        return _Times(
            branching.span.seconds, verifying.span.seconds, (began - submitted) + (seen - ended)
        )

    @property
    def _verification(self) -> VerifyRequest:
        return VerifyRequest([VerifyText(self.text.id, self.chain.tokens)])

    def _rewind(self) -> None:
        rewind = RewindRequest(self.text.id, self.text.length)
        self.executors.verifier.submit(rewind).result()
