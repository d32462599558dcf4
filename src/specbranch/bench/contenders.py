"""Who takes part in a comparison, and on which executors each is at its fastest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from specbranch.bench.placement import a_device_each
from specbranch.config import MOST_BRANCHES, SpeculativeConfig
from specbranch.engine.engine import Engine
from specbranch.engine.inputs import Prompt
from specbranch.llm import LLM
from specbranch.methods.registry import METHODS
from specbranch.outputs import RequestOutput
from specbranch.sampling_params import SamplingParams

# Names, as in files and options.
PLAIN = "plain"
SPECBRANCH = "specbranch"
ALWAYS_ON = "specbranch-always"
PAPER = "specbranch-paper"
ON_SHARE = a_device_each(PLAIN)
BIT_EXACT = "plain-exact"
SEQUENTIAL = "specbranch-sequential"
# Verifications of several lengths with nothing beside them.
BY_ITSELF = {gamma: f"sps-{gamma}-share" for gamma in (1, 4, 8)}

LABELS = {
    PLAIN: "plain decoding",
    SPECBRANCH: "SpecBranch",
    PAPER: "SpecBranch as in the paper",
}
AS_IN_THE_PAPER = SpeculativeConfig("auto", 0.3, MOST_BRANCHES, "point", "always", retrieval=False)


class Entrant(Protocol):
    """One way to decode, under a name.

    Attributes:
        name: as in files and options.
        label: for people.
        competes: whether it is a row of the table, or only there to be compared with.
        exact: whether its texts are to be plain decoding's, token by token.
        samples: whether it draws the same tokens as the others at a temperature above 0.
        devices: how many it takes, in its placement.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def competes(self) -> bool: ...
    @property
    def exact(self) -> bool: ...
    @property
    def samples(self) -> bool: ...
    @property
    def devices(self) -> int: ...

    def generate(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
        """Decode one prompt."""


def on_target_share(llm: LLM) -> LLM:
    """The same pair on the same executors, but its target never has more than its own cores."""
    executors, affinity = llm.engine.executors, llm.affinity
    kept = copy.copy(llm)
    kept.engine = Engine(
        replace(executors, affinity=replace(affinity, alone=affinity.target)),
        llm.engine.models,
        config=llm.config,
    )
    return kept


@dataclass(frozen=True)
class Contender:
    """A method of ours.

    Attributes:
        llm: on the executors where the method is at its fastest.
    """

    name: str
    label: str
    llm: LLM
    method: str
    options: SpeculativeConfig
    competes: bool = True
    samples: bool = True
    devices: int = 1

    @property
    def exact(self) -> bool:
        """Natural widths round differently."""
        return self.llm.padding.aligned and self.name != BIT_EXACT

    def generate(self, prompt: Prompt, params: SamplingParams) -> RequestOutput:
        """Decode one prompt."""
        return self.llm.generate([prompt], params, method=self.method, config=self.options)[0]


@dataclass(frozen=True)
class Pair:
    """One pair of models, on two kinds of executors.

    Attributes:
        sequential: one model at a time, with all cores.
        parallel: both at the same time, each with its share of the cores.
    """

    sequential: LLM
    parallel: LLM

    @classmethod
    def load(cls, make: Callable[[str], LLM], executors: str) -> Pair:
        """Load the pair for both; `make` loads it on the given kind of executors."""
        parallel = make(executors)
        # On a virtual clock nothing depends on who has which cores.
        if parallel.executor in ("inline", "virtual"):
            return cls(parallel, parallel)
        # This process runs the models sequentially, on the cores that the executors have together.
        parallel.affinity.alone.apply()
        return cls(make("inline"), parallel)

    def close(self) -> None:
        """Release all executors."""
        self.parallel.close()
        if self.sequential is not self.parallel:
            self.sequential.close()

    def lineup(self, options: SpeculativeConfig) -> list[Contender]:
        """The methods to draw side by side. SpS and plain decoding get all cores for each model."""
        gamma = 8 if options.gamma == "auto" else options.gamma
        fixed = replace(options, gamma=gamma)
        plain = self.sequential.plain()
        return [
            Contender(PLAIN, LABELS[PLAIN], plain, "autoregressive", options),
            Contender(f"sps-{gamma}", f"SpS, γ = {gamma}", self.sequential, "speculative", fixed),
            Contender(f"pearl-{gamma}", f"PEARL, γ = {gamma}", self.parallel, "pearl", fixed),
            Contender(SPECBRANCH, LABELS[SPECBRANCH], self.parallel, "specbranch", options),
        ]

    def as_in_the_paper(self) -> Contender:
        """SpecBranch by the paper's rules alone."""
        return Contender(PAPER, LABELS[PAPER], self.parallel, "specbranch", AS_IN_THE_PAPER)

    def field(self, options: SpeculativeConfig) -> list[Contender]:
        """All methods, SpS with short chains, too, and plain decoding of several kinds."""
        contenders = self.lineup(options)
        if options.gamma != 4:
            short = replace(options, gamma=4)
            four = Contender("sps-4", "SpS, γ = 4", self.sequential, "speculative", short)
            contenders.insert(1, four)
        free = replace(options, gamma="auto")
        contenders[1:1] = [
            Contender("lookup", "prompt lookup", self.sequential, "lookup", free),
            Contender("lookahead", "lookahead", self.sequential, "lookahead", free),
            Contender("adaedl", "AdaEDL", self.sequential, "adaedl", free),
        ]
        on = replace(options, speculate="always")
        label = "SpecBranch, never turned off"
        contenders.append(Contender(ALWAYS_ON, label, self.parallel, "specbranch", on))
        contenders.append(self.as_in_the_paper())
        kept = on_target_share(self.parallel)
        exact = Contender(BIT_EXACT, "plain decoding, bit-exact", kept, "autoregressive", options)
        contenders.append(replace(exact, competes=False))
        return contenders

    def on_a_device_each(self, field: Sequence[Contender]) -> list[Contender]:
        """The same methods, target and draft each on its own cores; nobody where both have one."""
        if self.sequential is self.parallel:
            return []
        kept = on_target_share(self.parallel)
        return [
            replace(
                contender,
                name=a_device_each(contender.name),
                llm=kept.plain() if contender.method == "autoregressive" else kept,
                devices=2 if METHODS[contender.method].needs_draft else 1,
            )
            for contender in field
            if contender.competes
        ]

    def for_overlap(self, options: SpeculativeConfig) -> list[Contender]:
        """What overlap is measured by, besides `field`; nobody where nothing overlaps.

        Nothing is turned off.
        """
        if self.sequential is self.parallel:
            return []
        kept = on_target_share(self.parallel)
        options = replace(options, speculate="always")
        label = "SpecBranch, models sequentially on all cores"
        found = [
            Contender(SEQUENTIAL, label, self.sequential, "specbranch", options, competes=False)
        ]
        for gamma, name in BY_ITSELF.items():
            label = f"SpS, γ = {gamma}, with the target on its share of the cores"
            fixed = replace(options, gamma=gamma)
            found.append(Contender(name, label, kept, "speculative", fixed, competes=False))
        return found
