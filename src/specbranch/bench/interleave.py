"""The run of a benchmark: every prompt by every contender in turn, again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from specbranch.bench.contenders import BIT_EXACT, PLAIN, Contender
from specbranch.metrics import Metrics, Round
from specbranch.sampling import SamplingParams

WARM_UP = SamplingParams(max_tokens=16)


@dataclass
class Results:
    """What was measured, by contender.

    Attributes:
        metrics: sums over the prompts, one a finished repeat.
        rounds: of all generations.
        compared, identical: texts held against those of plain decoding, token by token: those
            that are to be bit-exact, since natural widths round differently.
    """

    metrics: dict[str, list[Metrics]] = field(default_factory=lambda: defaultdict(list))
    rounds: dict[str, list[list[Round]]] = field(default_factory=lambda: defaultdict(list))
    compared: int = 0
    identical: int = 0


def interleave(
    contenders: Sequence[Contender],
    prompts: Sequence[list[int]],
    params: SamplingParams,
    repeats: int,
) -> Results:
    """Run the contenders side by side; an interrupt ends it with the repeats that are complete.

    Args:
        params: greedy, or coupled sampling with a seed.
    """
    results = Results()
    for contender in contenders:
        contender.generate(prompts[0], WARM_UP)
    try:
        with tqdm(total=repeats * len(prompts) * len(contenders), desc="texts") as progress:
            for _ in range(repeats):
                sums = {c.label: Metrics() for c in contenders}
                for prompt in prompts:
                    texts = {}
                    for contender in contenders:
                        output = contender.generate(prompt, params)
                        sums[contender.label] += output.metrics
                        results.rounds[contender.label].append(output.rounds)
                        texts[contender.label] = output.outputs[0].token_ids
                        progress.update()
                    for contender in contenders:
                        if contender.llm.width.aligned and contender.label != BIT_EXACT:
                            results.compared += 1
                            results.identical += texts[contender.label] == texts[BIT_EXACT]
                for label, metrics in sums.items():
                    results.metrics[label].append(metrics)
    except KeyboardInterrupt:
        if not results.metrics[PLAIN]:
            raise
    return results
