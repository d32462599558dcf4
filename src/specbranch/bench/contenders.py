"""Who takes part in a comparison, and on which lanes each is at its fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from specbranch.decoders import DecodingOptions
from specbranch.engine import Prompt
from specbranch.llm import LLM
from specbranch.options import MOST_BRANCHES
from specbranch.outputs import RequestOutput
from specbranch.sampling import SamplingParams

# Names, as in files and options.
PLAIN = "plain"
SPECBRANCH = "specbranch"
ALWAYS_ON = "specbranch-always"
PAPER = "specbranch-paper"
ON_SHARE = "plain-share"
BIT_EXACT = "plain-exact"
IN_TURN = "specbranch-in-turn"
# Verifications of several lengths with nothing beside them.
BY_ITSELF = {gamma: f"sps-{gamma}-share" for gamma in (1, 4, 8)}

LABELS = {
    PLAIN: "plain decoding",
    SPECBRANCH: "SpecBranch",
    PAPER: "SpecBranch as in the paper",
}
AS_IN_THE_PAPER = DecodingOptions("auto", 0.3, MOST_BRANCHES, "point", "always", retrieval=False)


class Entrant(Protocol):
    """One way to decode, under a name.

    Attributes:
        name: as in files and options.
        label: for people.
        competes: whether it is a row of the table, or only there to be compared with.
        exact: whether its texts are to be plain decoding's, token by token.
        samples: whether it draws the same tokens as the others at a temperature above 0.
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

    def generate(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
        """Decode one prompt."""


@dataclass(frozen=True)
class Contender:
    """A method of ours.

    Attributes:
        llm: on the lanes where the method is at its fastest.
    """

    name: str
    label: str
    llm: LLM
    method: str
    options: DecodingOptions
    competes: bool = True
    samples: bool = True

    @property
    def exact(self) -> bool:
        """Natural widths round differently."""
        return self.llm.width.aligned and self.name != BIT_EXACT

    def generate(self, prompt: Prompt, params: SamplingParams) -> RequestOutput:
        """Decode one prompt."""
        return self.llm.generate([prompt], params, method=self.method, options=self.options)[0]


@dataclass(frozen=True)
class Pair:
    """One pair of models, on two kinds of lanes.

    Attributes:
        in_turn: one model at a time, with all cores.
        parallel: both at the same time, each with its share of the cores.
    """

    in_turn: LLM
    parallel: LLM

    @classmethod
    def load(cls, make: Callable[[str], LLM], lanes: str) -> Pair:
        """Load the pair for both; `make` loads it on the given kind of lanes."""
        parallel = make(lanes)
        # On a virtual clock nothing depends on who has which cores.
        if parallel.lanes in ("inline", "virtual"):
            return cls(parallel, parallel)
        # This process has the models in turn: the same cores as the lanes have together.
        parallel.placement.alone.take()
        return cls(make("inline"), parallel)

    def close(self) -> None:
        """Release all lanes."""
        self.parallel.close()
        if self.in_turn is not self.parallel:
            self.in_turn.close()

    def lineup(self, options: DecodingOptions) -> list[Contender]:
        """The methods to draw side by side. SpS and plain decoding get all cores for each model."""
        gamma = 8 if options.gamma == "auto" else options.gamma
        fixed = replace(options, gamma=gamma)
        plain = self.in_turn.plain()
        return [
            Contender(PLAIN, LABELS[PLAIN], plain, "autoregressive", options),
            Contender(f"sps-{gamma}", f"SpS, γ = {gamma}", self.in_turn, "speculative", fixed),
            Contender(f"pearl-{gamma}", f"PEARL, γ = {gamma}", self.parallel, "pearl", fixed),
            Contender(SPECBRANCH, LABELS[SPECBRANCH], self.parallel, "specbranch", options),
        ]

    def as_in_the_paper(self) -> Contender:
        """SpecBranch by the paper's rules alone."""
        return Contender(PAPER, LABELS[PAPER], self.parallel, "specbranch", AS_IN_THE_PAPER)

    def field(self, options: DecodingOptions) -> list[Contender]:
        """All methods, SpS with short chains, too, and plain decoding of several kinds."""
        contenders = self.lineup(options)
        if options.gamma != 4:
            short = replace(options, gamma=4)
            four = Contender("sps-4", "SpS, γ = 4", self.in_turn, "speculative", short)
            contenders.insert(1, four)
        free = replace(options, gamma="auto")
        contenders[1:1] = [
            Contender("lookup", "prompt lookup", self.in_turn, "lookup", free),
            Contender("lookahead", "lookahead", self.in_turn, "lookahead", free),
            Contender("adaedl", "AdaEDL", self.in_turn, "adaedl", free),
        ]
        on = replace(options, speculate="always")
        label = "SpecBranch, never turned off"
        contenders.append(Contender(ALWAYS_ON, label, self.parallel, "specbranch", on))
        contenders.append(self.as_in_the_paper())
        kept = self.parallel.on_target_share()
        exact = Contender(BIT_EXACT, "plain decoding, bit-exact", kept, "autoregressive", options)
        contenders.append(replace(exact, competes=False))
        if self.in_turn is not self.parallel:
            label = "plain decoding on the target's share of the cores"
            share = Contender(ON_SHARE, label, kept.plain(), "autoregressive", options)
            contenders.append(replace(share, competes=False))
        return contenders

    def for_overlap(self, options: DecodingOptions) -> list[Contender]:
        """What overlap is measured by, besides `field`; nobody where nothing overlaps.

        Nothing is turned off.
        """
        if self.in_turn is self.parallel:
            return []
        kept = self.parallel.on_target_share()
        options = replace(options, speculate="always")
        label = "SpecBranch, models in turn on all cores"
        found = [Contender(IN_TURN, label, self.in_turn, "specbranch", options, competes=False)]
        for gamma, name in BY_ITSELF.items():
            label = f"SpS, γ = {gamma}, with the target on its share of the cores"
            fixed = replace(options, gamma=gamma)
            found.append(Contender(name, label, kept, "speculative", fixed, competes=False))
        return found
