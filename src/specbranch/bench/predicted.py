"""What the formulas of `theory` predict, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specbranch.bench.contenders import PAPER, PLAIN
from specbranch.bench.run import Heat
from specbranch.bench.theory import cut_specbranch_speedup, pearl_speedup, sps_speedup
from specbranch.metrics import Round


@dataclass(frozen=True)
class Prediction:
    """Speed-up of a method over plain decoding, in decoding time, the prompt's left out.

    Attributes:
        draft, method: what was measured.
        alpha: α, accepted draft tokens ÷ those that the target judged.
        gamma: γ; where it varies, the mean length of a chain.
        c: mean verification ÷ mean draft step.
        hit: share of the accepted chains after which a branch survived.
        predicted, measured: ratios.
    """

    draft: str
    method: str
    alpha: float
    gamma: float
    c: float
    hit: float
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Predicted ÷ measured − 1."""
        return self.predicted / self.measured - 1


def predictions(heats: Sequence[Heat], names: Iterable[str]) -> list[Prediction]:
    """Of the greedy heats and the methods that have a formula: SpS, PEARL, the paper's SpecBranch.

    α, c and the hit probability are those of the run itself. A formula holds where positions are
    accepted alike and independently, and where nothing takes time but forwards.
    """
    found = []
    names = [n for n in names if n.startswith(("sps-", "pearl-")) or n == PAPER]
    for draft in dict.fromkeys(heat.draft for heat in heats):
        ours = [heat for heat in heats if heat.draft == draft and heat.temperature == 0]
        plain = _rounds(ours, PLAIN)
        for name in names:
            rounds = _rounds(ours, name)
            if rounds and plain and any(done.chain for done in rounds):
                found.append(_predict(draft, name, rounds, plain))
    return found


def _rounds(heats: Iterable[Heat], name: str) -> list[Round]:
    turns = [turn for heat in heats for turn in heat.answers.get(name, [])]
    return [done for turn in turns for done in turn.rounds]


def _predict(draft: str, name: str, rounds: list[Round], plain: list[Round]) -> Prediction:
    drafted = [r for r in rounds if r.chain and r.verification]
    accepted = sum(r.accepted for r in drafted)
    alpha = accepted / max(1, accepted + sum(r.accepted < r.chain for r in drafted))
    verification = _mean(r.verification.seconds for r in drafted if r.verification)
    bursts = [b for r in rounds for b in (r.drafting, r.branching) if b and b.forwards]
    step = sum(b.seconds for b in bursts) / sum(len(b.forwards) for b in bursts)
    c = verification / step
    outcomes = [r.outcome for r in rounds if r.outcome in ("hit", "miss")]
    hit = outcomes.count("hit") / len(outcomes) if outcomes else 0.0
    gamma: float
    if name == PAPER:
        gamma = _mean(r.chain for r in rounds)
        stages = [r.drafting for r in rounds if r.drafting]
        ratio = cut_specbranch_speedup(
            alpha,
            c,
            hit,
            [r.chain for r in rounds if r.draft_stage] or [0],
            [r.chain for r in rounds if not r.draft_stage] or [0],
            _mean(len(stage.forwards) for stage in stages) if stages else 0.0,
            _mean(len(r.branching.forwards) if r.branching else 0 for r in rounds),
        )
    else:
        gamma = int(name.rpartition("-")[2])
        formula = sps_speedup if name.startswith("sps-") else pearl_speedup
        ratio = formula(alpha, gamma, c)
    # The formulas give a plain forward the time of a verification.
    token = _mean(r.seconds for r in plain)
    measured = token * sum(len(r.tokens) for r in rounds) / sum(r.seconds for r in rounds)
    return Prediction(draft, name, alpha, gamma, c, hit, ratio * token / verification, measured)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
