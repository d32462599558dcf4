"""Records from the pair itself: its own texts, decoded by SpS with the target's features watched.

SpS rather than SpecBranch: its chains are never cut, so that every record says what would have
become of all γ tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from specbranch.config import SpeculativeConfig
from specbranch.errors import ExecutorError
from specbranch.llm import LLM
from specbranch.methods.base import MethodContext
from specbranch.methods.registry import MethodSpec
from specbranch.methods.speculative import Speculative
from specbranch.metrics import Round
from specbranch.sampling_params import SamplingParams
from specbranch.training.hrad.records import Collection, Record
from specbranch.workers.messages import Draft, VerifyResult
from specbranch.workers.requests import FeaturesRequest, WatchRequest


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the file they are from."""

    ids: list[int]
    source: str


class Recorder(Speculative):
    """SpS that takes down a record of every round but the first, which has no z yet.

    A round with room for fewer than γ tokens leaves none, whatever its outcome: to keep only
    those whose class is certain, the rejected ones, would make rejection look likelier than it is.

    Args:
        context: γ of its configuration must be a number.
        features: asked for z after each verification.

    Attributes:
        records: of the text.
    """

    def __init__(self, context: MethodContext, features: Callable[[], Tensor | None]) -> None:
        super().__init__(context)
        self._features = features
        self._z: Tensor | None = None
        self._planned: Draft | None = None
        self.records: list[Record] = []

    def absorb_draft(self, draft: Draft) -> None:
        super().absorb_draft(draft)
        self._planned = draft

    def absorb_verification(self, result: VerifyResult) -> Round:
        assert self._planned is not None
        full = self.sequence.remaining - 1 >= self._gamma
        if self._z is not None and full:
            self.records.append(Record(self._z, self._planned.confidences, result.accepted))
        return super().absorb_verification(result)

    def observe(self, done: Round) -> None:
        self._z = self._features()


def record(
    llm: LLM, prompt: list[int], params: SamplingParams, gamma: int, layers: int
) -> list[Record]:
    """The records of one text.

    Raises:
        InputError: as `LLM.generate`.
        ExecutorError: an executor failed.
    """
    verifier = llm.engine.executors.verifier
    made: list[Recorder] = []

    def make(context: MethodContext) -> Recorder:
        text = context.sequence.id
        verifier.submit(WatchRequest(text, layers)).result()
        made.append(Recorder(context, lambda: verifier.submit(FeaturesRequest(text)).result()))
        return made[0]

    config = SpeculativeConfig(gamma=gamma, k_max=1)
    spec = MethodSpec("hrad collect", make)
    request = llm.engine.make_request(prompt, params, method=spec, config=config)
    for _ in llm.stream_request(request):
        pass
    if request.reason is not None:  # plain decoding went on, which leaves no records
        raise ExecutorError("draft", f"was lost: {request.reason}")
    return made[0].records


def collect(
    llm: LLM, prompts: Iterable[Prompt], params: SamplingParams, collection: Collection
) -> None:
    """Add the records of every prompt that the collection has not; shows a bar.

    Raises:
        InputError, ExecutorError: as `record`.
    """
    setting = collection.setting
    for prompt in tqdm(prompts, desc="prompts"):
        if not collection.has(prompt.ids):
            found = record(llm, prompt.ids, params, setting.gamma, setting.layers)
            collection.add(prompt.ids, prompt.source, found)
