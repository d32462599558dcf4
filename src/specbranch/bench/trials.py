"""Rounds of k branches of which nothing is committed, so that they can be run again and again.

They make the calls of `decoders.specbranch`, verify ‖ branch, in its order and with its messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from specbranch.config import MOST_GAMMA
from specbranch.llm import LLM
from specbranch.methods import Executors, SpeculativeConfig
from specbranch.metrics import Round
from specbranch.models.info import CacheSize
from specbranch.policy.branching import DraftLengthPolicy
from specbranch.sampling_params import SamplingParams
from specbranch.sequence import Sequence
from specbranch.workers.messages import BranchPlan, Chain, CommitUpdate

CHAIN = 6  # tokens verified in a trial: about what a round has
TRIALS = 4  # for each text
STEPS = 5  # of the branch calls that draft steps are timed in: they fit beside a verification
# Of a trial's text, never ended early, so that every branch grows in every step.
PARAMS = SamplingParams(max_tokens=CHAIN + MOST_GAMMA + 4, ignore_eos=True)


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

    def run(self, llm: LLM, prompt: list[int], options: SpeculativeConfig) -> None:
        """Trials after a prompt, or as much of it as leaves room for a round."""
        request = llm.request(prompt[: llm.max_model_len - PARAMS.max_tokens], PARAMS)
        for _ in llm.run(request, self._decode, options):
            raise AssertionError("trials commit nothing")

    def _decode(
        self, sequence: Sequence, executors: Executors, options: SpeculativeConfig
    ) -> Iterator[Round]:
        """A decoding method that yields no rounds."""
        yield from ()
        assert executors.draft is not None
        executors.share_target(overlap=True)
        if executors.affinity is not None:
            executors.draft.set_affinity(executors.affinity.share("draft", overlap=True))
        resolution = CommitUpdate(sequence.length)
        drafting = executors.draft.submit(
            "draft", sequence.id, resolution, CHAIN, DraftLengthPolicy()
        )
        trial = _Trial(sequence, executors, options, drafting.result())
        trial.round(steps=0)  # the first one has the draft read the end of its chain
        for _ in range(TRIALS):
            alone = trial.verify_alone()
            self.planning.append(trial.round(steps=0).drafting)
            self.burst.append(trial.round(STEPS).drafting)
            whole = trial.round(MOST_GAMMA, stop=True)
            self.message.append(whole.message)
            self.slow_down.append(whole.verifying / alone)
            self._weigh(sequence, executors)

    def _weigh(self, sequence: Sequence, executors: Executors) -> None:
        """Take in the caches' sizes as a round left them."""
        calls = [executor.submit("cache_size", sequence.id) for executor in executors.all()]
        target, draft = (call.result() for call in calls)
        assert isinstance(target, CacheSize) and isinstance(draft, CacheSize)
        without = draft.token * (len(sequence.prompt) + sequence.max_tokens)
        self.kv_bytes.append(draft.branches)
        self.kv_share.append(draft.branches / (sequence.length * (draft.token + target.token)))
        self.kv_reserved.append(draft.allocated - without)


@dataclass(frozen=True)
class _Times:
    """Seconds of one round: on the draft executor, on the target executor, on the way."""

    drafting: float
    verifying: float
    message: float


@dataclass
class _Trial:
    """Rounds after one text: of each, both executors reset what it did."""

    text: Sequence
    executors: Executors
    options: SpeculativeConfig
    chain: Chain

    def verify_alone(self) -> float:
        """Seconds of the verification with the draft executor idle."""
        verifying = self.executors.target.submit("verify", self.text.id, self.chain.tokens)
        verifying.result()
        self._rewind()
        return verifying.span.seconds

    def round(self, steps: int, stop: bool = False) -> _Times:
        """Verify ‖ branch, the decoder's calls in the decoder's order.

        Args:
            steps: of the draft.
            stop: the branches when the chain is verified.
        """
        target, draft = self.executors.all()
        plan = BranchPlan(
            self.text.remaining - 1, steps, self.options.branches, self.options.branching
        )
        submitted = draft.now()
        branching = draft.submit(
            "branch", self.text.id, CommitUpdate(self.text.length + len(self.chain)), plan
        )
        verifying = target.submit("verify", self.text.id, self.chain.tokens)
        verifying.result()
        if stop:
            branching.stop()
        waiting = draft.now()
        branching.result()
        seen = draft.now()
        self._rewind()
        began, ended = branching.span.start, max(branching.span.end, waiting)
        return _Times(
            branching.span.seconds, verifying.span.seconds, (began - submitted) + (seen - ended)
        )

    def _rewind(self) -> None:
        self.executors.target.submit("rewind", self.text.id, self.text.length).result()
