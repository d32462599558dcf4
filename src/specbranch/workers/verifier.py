"""The target's worker: one forward a verification, and the acceptance rule beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specbranch.logprobs import PlaceLogprobs
from specbranch.models.protocol import ModelRunner
from specbranch.policy.hrad import HRAD
from specbranch.policy.online_hrad import OnlineHRAD
from specbranch.policy.signal import Signal
from specbranch.policy.verify import verify_matching, verify_rejection
from specbranch.sampling.logprobs import logprobs_of
from specbranch.sampling.pipeline import LogitsPipeline
from specbranch.sampling.samplers import Sampler, make_sampler
from specbranch.workers.messages import OpenText, VerifyResult, VerifyText
from specbranch.workers.text_worker import TextWorker

SCORED = 256  # tokens of a prompt whose logits are in memory at once


@dataclass
class CommittedText:
    """A text as the target knows it. The cache covers all but its last token.

    Attributes:
        tokens: committed ids, prompt included.
        pipeline: from logits to log p.
        sampler: the randomness of the text.
        logprobs: how many of the likeliest tokens to tell with each token; None tells nothing.
        prompt_logprobs: of the prompt's tokens after the first, where they were asked for.
        layers: K, of how many last layers to keep the hidden states; 0 keeps none.
        hidden: those states at the last verified position, ``[K, hidden_size]``.
        features: z after the last verification, once it was asked for.
    """

    tokens: list[int]
    pipeline: LogitsPipeline
    sampler: Sampler
    logprobs: int | None = None
    prompt_logprobs: list[PlaceLogprobs] = field(default_factory=list)
    layers: int = 0
    hidden: Tensor | None = None
    features: Tensor | None = None


class Verifier(TextWorker):
    """Holds the target and the committed texts, and verifies chains.

    Args:
        runner: the target model.
        name: of the model.
        predictor: H-RAD, asked by `judge`; None gives no signals.
    """

    _runner: ModelRunner

    def __init__(
        self,
        runner: ModelRunner,
        name: str = "target",
        predictor: HRAD | OnlineHRAD | None = None,
    ) -> None:
        super().__init__(runner, name)
        self._predictor = predictor
        self._learner = predictor if isinstance(predictor, OnlineHRAD) else None
        self._texts: dict[int, CommittedText] = {}

    def open(self, texts: Sequence[OpenText]) -> None:
        """Read the prompts, all but the last token of each, into the cache."""
        for text in texts:
            params = text.params
            scored = [] if params.prompt_logprobs is None else self._score_prompt(text)
            self._runner.open(text.id, text.capacity, text.padding)
            self._texts[text.id] = CommittedText(
                list(text.prompt),
                LogitsPipeline.of(params, text.constraints, self._vocabulary),
                make_sampler(params),
                params.logprobs,
                scored,
            )
            if self._predictor is not None and text.judged:
                self.watch(text.id, self._predictor.layers)
            if read := text.prompt[:-1]:
                self._runner.prefill(text.id, read)
                self.meter(len(read))

    def _score_prompt(self, text: OpenText) -> list[PlaceLogprobs]:
        """Log-probabilities of the prompt's tokens after the first.

        They come from forwards of their own, whose cache is thrown away, so that the text is the
        same with them and without.
        """
        most = text.params.prompt_logprobs
        assert most is not None
        self._runner.open(text.id, text.capacity, text.padding)
        found: list[PlaceLogprobs] = []
        for start in range(0, len(text.prompt) - 1, SCORED):
            end = min(start + SCORED, len(text.prompt) - 1)
            rows = text.prompt[start:end]
            logits = self._runner.run(text.id, rows).logits
            self.meter(len(rows))
            found += logprobs_of(logits, text.prompt[start + 1 : end + 1], most)
        self._runner.close(text.id)
        return found

    def prompt_logprobs(self, id: int) -> list[PlaceLogprobs]:
        """Of the prompt's tokens after the first; empty unless the parameters ask for them."""
        return self._texts[id].prompt_logprobs

    def close(self, ids: Sequence[int]) -> list[int]:
        """Forget texts, however far they were opened; the target drafts nothing."""
        for id in ids:
            self._runner.close(id)
            self._texts.pop(id, None)
        return [0] * len(ids)

    def rewind(self, id: int, length: int) -> None:
        """Forget what was committed after the text's first `length` tokens."""
        text = self._texts[id]
        del text.tokens[length:]
        self._runner.rewind(id, length - 1)

    def reset(self) -> None:
        """Have an online H-RAD start anew."""
        if self._learner is not None:
            self._learner.reset()

    def learn(self) -> None:
        """A gradient step of an online H-RAD."""
        if self._learner is not None:
            self._learner.learn()

    def verify(self, texts: Sequence[VerifyText]) -> list[VerifyResult]:
        """Verify a chain for each text, one forward a text; commits what is decided."""
        return [self._verify(text) for text in texts]

    def _verify(self, asked: VerifyText) -> VerifyResult:
        """One forward over the last committed token and the chain."""
        text, chain = self._texts[asked.id], asked.chain
        layers = text.layers if asked.judged else 0
        rows = [text.tokens[-1], *chain]
        out = self._runner.run(asked.id, rows, layers, asked.lookahead_rows)
        guesses = [] if out.lookahead_rows is None else out.lookahead_rows.argmax(-1).tolist()
        self.meter(len(rows) + len(guesses))
        position = len(text.tokens)
        log_p = self._log_p(text, out.logits, chain)
        if asked.log_q is None:
            accepted, token = verify_matching(chain, log_p, text.sampler, position)
        else:
            log_q = asked.log_q.to(log_p.device)
            accepted, token = verify_rejection(chain, log_p, log_q, text.sampler, position)
        text.pipeline.check(log_p[: accepted + 1])
        decided = [*chain[:accepted], token]
        logprobs: list[PlaceLogprobs] = []
        if text.logprobs is not None:
            logprobs = logprobs_of(out.logits[: accepted + 1], decided, text.logprobs)
        text.tokens += decided
        self._runner.rewind(asked.id, len(text.tokens) - 1)
        if self._learner is not None and text.features is not None:
            self._learner.observe(text.features, asked.confidences, accepted)
        text.hidden = None if out.hidden is None else out.hidden[:, accepted]
        text.features = None
        forced = text.pipeline.forced(text.tokens)
        return VerifyResult(accepted, token, guesses, logprobs, forced)

    def judge(self, ids: Sequence[int]) -> list[Signal | None]:
        """What H-RAD makes of each text's last verification; None if it was not watched."""
        return [self._judge(self._texts[id]) for id in ids]

    def _judge(self, text: CommittedText) -> Signal | None:
        features = self._features(text)
        if self._predictor is None or features is None:
            return None
        return self._predictor.signal(features)

    def watch(self, id: int, layers: int) -> None:
        """From now on keep the features of every verification, of that many last layers."""
        self._texts[id].layers = layers

    def features(self, id: int) -> Tensor | None:
        """Z after the last verification, float32 ``[(layers + 1) · hidden_size]``, on the CPU.

        z joins the hidden states of the last layers at the last verified position, first layer
        first, and the embedding of the newest token (arXiv 2506.01979, §5). It is None before the
        first verification that was watched.
        """
        found = self._features(self._texts[id])
        return None if found is None else found.cpu()

    @torch.inference_mode()
    def _features(self, text: CommittedText) -> Tensor | None:
        if text.features is None and text.hidden is not None:
            newest = self._runner.embeddings([text.tokens[-1]])[0]
            text.features = torch.cat([text.hidden.flatten(), newest]).float()
        return text.features

    @staticmethod
    def _log_p(text: CommittedText, logits: Tensor, chain: list[int]) -> Tensor:
        """Log p, or what ranks the tokens alike, at each place of the chain and after it."""
        if text.pipeline.is_identity:
            return logits
        histories = None
        if text.pipeline.needs_history:
            histories = [text.tokens + chain[:i] for i in range(len(chain) + 1)]
        return text.pipeline(logits, histories)
