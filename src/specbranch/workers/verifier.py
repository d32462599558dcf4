"""The target executor's worker: one forward a round, and the acceptance decision beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from specbranch.executors.base import Worker
from specbranch.models.info import CacheSize, ModelInfo
from specbranch.models.runner import CausalRunner, LookaheadRow
from specbranch.policy.hrad import HRAD
from specbranch.policy.online_hrad import OnlineHRAD
from specbranch.policy.signal import Signal
from specbranch.policy.verify import verify_matching, verify_rejection
from specbranch.sampling.processors import warp
from specbranch.sampling.samplers import Sampler, make_sampler
from specbranch.sampling_params import SamplingParams
from specbranch.workers.messages import Opening, Verification


@dataclass
class Text:
    """A sequence as the target knows it; the cache covers all but its last token.

    Attributes:
        layers: K, of how many last layers to keep the hidden states; 0 keeps none.
        hidden: those states at the last verified position, ``[K, hidden_size]``.
        features: z of DESIGN §4 after the last verification, once somebody asked.
    """

    tokens: list[int]
    params: SamplingParams
    sampler: Sampler
    processors: LogitsProcessorList
    layers: int = 0
    hidden: Tensor | None = None
    features: Tensor | None = None


class TargetWorker(Worker):
    """Holds the target and the committed text; verifies chains.

    Args:
        runner: the target model.
        name: of the model.
        predictor: asked by `judge`; None gives no signals.
    """

    def __init__(
        self,
        runner: CausalRunner,
        name: str = "target",
        predictor: HRAD | OnlineHRAD | None = None,
    ) -> None:
        self._runner = runner
        self._name = name
        self._predictor = predictor
        self._learner = predictor if isinstance(predictor, OnlineHRAD) else None
        self._texts: dict[int, Text] = {}

    def describe(self) -> ModelInfo:
        """What the model is."""
        return self._runner.describe(self._name)

    def open(self, sequence: int, opening: Opening) -> None:
        """Read the prompt, all but its last token, into the cache."""
        params = opening.params
        self._runner.open(sequence, opening.capacity, opening.padding)
        self._texts[sequence] = Text(
            list(opening.prompt), params, make_sampler(params), params.processors()
        )
        if self._predictor is not None and opening.signals:
            self.watch(sequence, self._predictor.layers)
        if read := opening.prompt[:-1]:
            self._runner.prefill(sequence, read)
            self.meter(len(read))

    def close(self, sequence: int) -> None:
        """Forget the sequence, however far it was opened."""
        self._runner.close(sequence)
        self._texts.pop(sequence, None)

    def rewind(self, sequence: int, length: int) -> None:
        """Forget what was committed after the text's first `length` tokens."""
        text = self._texts[sequence]
        del text.tokens[length:]
        self._runner.rewind(sequence, length - 1)

    def cache_size(self, sequence: int) -> CacheSize:
        """What the sequence's keys and values take."""
        return self._runner.cache_size(sequence)

    def reset(self) -> None:
        """Forget what was learned from the texts so far."""
        if self._learner is not None:
            self._learner.reset()

    def learn(self) -> None:
        """Learn from the verifications so far, while there is nothing else to do."""
        if self._learner is not None:
            self._learner.learn()

    def verify(
        self,
        sequence: int,
        chain: list[int],
        log_q: Tensor | None = None,
        lookahead_rows: Sequence[LookaheadRow] = (),
        confidences: Sequence[float] = (),
        watched: bool = True,
    ) -> Verification:
        """One forward over the last committed token and the chain; commits what it decides.

        Args:
            chain: draft tokens that continue the committed text; empty for plain decoding.
            log_q: the draft's log-probabilities ``[n, vocabulary]`` for the rejection rule. Without
                them the chain has to match what the target chooses, which is lossless for any.
            lookahead_rows: to run in the same forward, for the likeliest token after each.
            confidences: the draft's at the places of the chain, to learn from.
            watched: whether features may be asked for, where there is a predictor.
        """
        text = self._texts[sequence]
        layers = text.layers if watched else 0
        out = self._runner.run(sequence, [text.tokens[-1], *chain], layers, lookahead_rows)
        logits = out.logits
        guesses = [] if out.lookahead_rows is None else out.lookahead_rows.argmax(-1).tolist()
        self.meter(1 + len(chain) + len(guesses))
        position = len(text.tokens)
        log_p = self._warp(text, logits, chain)
        if log_q is None:
            accepted, token = verify_matching(chain, log_p, text.sampler, position)
        else:
            log_q = log_q.to(log_p.device)
            accepted, token = verify_rejection(chain, log_p, log_q, text.sampler, position)
        text.tokens += [*chain[:accepted], token]
        self._runner.rewind(sequence, len(text.tokens) - 1)
        if self._learner is not None and text.features is not None:
            self._learner.observe(text.features, confidences, accepted)
        text.hidden = None if out.hidden is None else out.hidden[:, accepted]
        text.features = None
        return Verification(accepted, token, guesses)

    def judge(self, sequence: int) -> Signal | None:
        """What H-RAD makes of the last verification; None if it was not watched."""
        features = self._features(self._texts[sequence])
        if self._predictor is None or features is None:
            return None
        return self._predictor.signal(features)

    def watch(self, sequence: int, layers: int) -> None:
        """From now on keep the features of every verification, of that many last layers."""
        self._texts[sequence].layers = layers

    def features(self, sequence: int) -> Tensor | None:
        """The z of DESIGN §4 after the last verification, float32 ``[(layers + 1) · hidden_size]``.

        The hidden states of the last layers at the last verified position, first layer first, and
        the embedding of the newest token. None before the first verification that was watched.
        """
        found = self._features(self._texts[sequence])
        return None if found is None else found.cpu()

    @torch.inference_mode()
    def _features(self, text: Text) -> Tensor | None:
        if text.features is None and text.hidden is not None:
            newest = self._runner.embeddings([text.tokens[-1]])[0]
            text.features = torch.cat([text.hidden.flatten(), newest]).float()
        return text.features

    @staticmethod
    def _warp(text: Text, logits: Tensor, chain: list[int]) -> Tensor:
        """What ranks the tokens at each place of the chain and after it, as `warp`."""
        if text.params.greedy and not text.processors:
            return logits
        contexts = [text.tokens + chain[:i] for i in range(len(chain) + 1)]
        return warp(logits, contexts, text.processors)
