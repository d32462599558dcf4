"""Records from the pair itself: its own texts, decoded by SpS with the target's features watched.

SpS rather than SpecBranch: its chains are never cut, so that every record says what would have
become of all γ tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from specbranch.config import SpeculativeConfig
from specbranch.errors import ExecutorError
from specbranch.llm import LLM
from specbranch.methods.base import Executors, commit
from specbranch.metrics import Round
from specbranch.policy.branching import DraftLengthPolicy
from specbranch.sampling_params import SamplingParams
from specbranch.sequence import Sequence
from specbranch.training.hrad.records import Collection, Record
from specbranch.workers.messages import Chain, CommitUpdate, Verification


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the file they are from."""

    ids: list[int]
    source: str


class Recorder:
    """A `Decoder` that takes down a record of every round but the first, which has no z yet.

    A round with room for fewer than γ tokens leaves none, whatever its outcome: to keep only
    those whose class is certain, the rejected ones, would make rejection look likelier than it is.

    Args:
        layers: K.

    Attributes:
        records: of the text.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.records: list[Record] = []

    def __call__(
        self, sequence: Sequence, executors: Executors, options: SpeculativeConfig
    ) -> Iterator[Round]:
        """Rounds as `speculative` has them; γ must be a number."""
        assert executors.draft is not None and options.gamma != "auto"
        executors.target.submit("watch", sequence.id, self.layers).result()
        resolution = CommitUpdate(sequence.length)
        z: Tensor | None = None
        while not sequence.finished:
            gamma = min(options.gamma, sequence.remaining - 1)
            drafting = executors.draft.submit(
                "draft", sequence.id, resolution, gamma, DraftLengthPolicy()
            )
            chain: Chain = drafting.result()
            verifying = executors.target.submit("verify", sequence.id, chain.tokens, chain.log_q)
            outcome: Verification = verifying.result()
            if z is not None and gamma == options.gamma:
                self.records.append(Record(z, chain.confidences, outcome.accepted))
            z = executors.target.submit("features", sequence.id).result()

            resolution = CommitUpdate(sequence.length + outcome.accepted, [outcome.token])
            done = commit(sequence, chain.tokens, outcome)
            done.draft_stage = True
            done.drafting, done.verification = drafting.span, verifying.span
            yield done


def record(
    llm: LLM, prompt: list[int], params: SamplingParams, gamma: int, layers: int
) -> list[Record]:
    """The records of one text.

    Raises:
        InputError: as `LLM.generate`.
        ExecutorError: a executor failed.
    """
    request, recorder = llm.request(prompt, params), Recorder(layers)
    for done in llm.run(request, recorder, SpeculativeConfig(gamma, k_max=1)):
        if done.drafting is None:  # plain decoding, which goes on where the draft is lost
            raise ExecutorError("draft", "was lost")
    return recorder.records


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
