"""Who takes part in a comparison, and on which lanes each is at its fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from specbranch.decoders import DecodingOptions
from specbranch.engine import Prompt
from specbranch.llm import LLM
from specbranch.options import MOST_BRANCHES
from specbranch.outputs import RequestOutput
from specbranch.sampling import SamplingParams

PLAIN = "plain decoding"
SPECBRANCH = "SpecBranch"
PAPER = "SpecBranch as in the paper"
IN_TURN = "SpecBranch, models in turn on all cores"
ON_SHARE = "plain decoding on the target's share of the cores"
BIT_EXACT = "plain decoding, bit-exact, on the target's share of the cores"
# Verifications of several lengths with nothing beside them.
BY_ITSELF = {
    gamma: f"SpS, γ = {gamma}, with the target on its share of the cores" for gamma in (1, 4, 8)
}


AS_IN_THE_PAPER = DecodingOptions("auto", 0.3, MOST_BRANCHES, "point", "always", retrieval=False)


@dataclass(frozen=True)
class Contender:
    """One way to decode.

    Attributes:
        llm: on the lanes where the method is at its fastest.
        competes: whether it is a row of the table, or only there to be compared with.
    """

    label: str
    llm: LLM
    method: str
    options: DecodingOptions
    competes: bool = True

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
        return [
            Contender(PLAIN, self.in_turn.plain(), "autoregressive", options),
            Contender(f"SpS, γ = {gamma}", self.in_turn, "speculative", fixed),
            Contender(f"PEARL, γ = {gamma}", self.parallel, "pearl", fixed),
            Contender(SPECBRANCH, self.parallel, "specbranch", options),
        ]

    def field(self, options: DecodingOptions) -> list[Contender]:
        """All methods, SpS with short chains, too, and what the lanes are measured by."""
        contenders = self.lineup(options)
        if options.gamma != 4:
            short = replace(options, gamma=4)
            contenders.insert(1, Contender("SpS, γ = 4", self.in_turn, "speculative", short))
        free = replace(options, gamma="auto")
        contenders[1:1] = [
            Contender("prompt lookup", self.in_turn, "lookup", free),
            Contender("lookahead", self.in_turn, "lookahead", free),
            Contender("AdaEDL", self.in_turn, "adaedl", free),
        ]
        contenders.append(Contender(PAPER, self.parallel, "specbranch", AS_IN_THE_PAPER))
        kept = self.parallel.on_target_share()
        contenders.append(Contender(BIT_EXACT, kept, "autoregressive", options, competes=False))
        if self.in_turn is not self.parallel:
            contenders += [
                Contender(IN_TURN, self.in_turn, "specbranch", options, competes=False),
                Contender(ON_SHARE, kept.plain(), "autoregressive", options, competes=False),
            ]
            contenders += [
                Contender(label, kept, "speculative", replace(options, gamma=gamma), competes=False)
                for gamma, label in BY_ITSELF.items()
            ]
        return contenders
