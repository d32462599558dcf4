"""vLLM's interface: the proposer class of ``method: custom_class``.

`propose` is called after each verification. What it launches and does not await overlaps the next
one: the drafter grows branches for its outcomes meanwhile.
"""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from specbranch.integrations.vllm.coordinator import Coordinator
from specbranch.integrations.vllm.identity import PrefixIdentity
from specbranch.integrations.vllm.link import ProcessLink
from specbranch.integrations.vllm.messages import Sampling, Start
from specbranch.integrations.vllm.sampling_fix import mend_sampling
from specbranch.integrations.vllm.sessions import Request, Row, Tokens
from specbranch.integrations.vllm.settings import Settings
from specbranch.integrations.vllm.versions import RunnerView, calling_runner, leads

logger = logging.getLogger("specbranch")


class Proposer:
    """Proposes what a draft in a process of its own has prepared.

    Args:
        vllm_config: vLLM's `VllmConfig`.

    Raises:
        InputError: a setting is wrong.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.settings = Settings.of(vllm_config.additional_config)
        model = vllm_config.model_config
        self._gamma: int = vllm_config.speculative_config.num_speculative_tokens
        self._context: int = model.max_model_len
        self._start = Start(
            self.settings.draft,
            str(model.tokenizer or model.model),
            self.settings.dtype,
            self.settings.device,
            self.settings.quantization,
            self.settings.enforce_eager,
            self.settings.cores,
            int(model.get_vocab_size()),
            self._gamma,
            self.settings.k_max,
            self._context,
            self.settings.retrieval,
        )
        self._coordinator: Coordinator | None = None
        self._loaded = False
        self._runner: RunnerView | None = None
        self._identity = PrefixIdentity()

    def load_model(self, target: Any, *args: Any, **kwargs: Any) -> None:
        """Start the drafter; vLLM calls this once the target is loaded.

        Raises:
            InputError: the draft cannot be loaded, or does not fit the target.
            ExecutorError: the drafter's process ended.
        """
        self._runner = calling_runner(sys._getframe(1), self._context)
        self._load()

    def _load(self) -> None:
        self._loaded = True
        mend_sampling()
        if not leads():
            return
        self._coordinator = Coordinator(
            self._connect,
            self._gamma,
            self.settings.wait,
            self.settings.speculate == "always",
        )
        atexit.register(self.close)
        if self._runner is not None:
            self._runner.on_schedule(self._scheduled)
        if not self._coordinator.wait_until_ready(self.settings.startup_timeout):
            logger.warning("specbranch: the draft is not loaded yet; vLLM starts without it")

    def _connect(self) -> ProcessLink:
        settings = self.settings
        return ProcessLink(self._start, settings.python, settings.timeout, settings.startup_timeout)

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Sequence[int],
        token_ids_cpu: Any,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Draft tokens for each row of the batch; vLLM calls this after each verification.

        Args:
            sampled_token_ids: committed in this step; none of a row whose prompt is being read.
            num_tokens_no_spec: length of each row's text, int ``[rows]``.
            token_ids_cpu: int32 ``[rows, context]``.
            slot_mappings: not used.
        """
        if not self._loaded:
            self._load()
        if self._coordinator is None:
            return [[] for _ in sampled_token_ids]
        texts = [
            np.asarray(token_ids_cpu[place, : int(num_tokens_no_spec[place])], np.int32)
            for place in range(len(sampled_token_ids))
        ]
        names, alive = self._names(texts)
        rows = [
            Row(name, text, bool(len(sampled)))
            for name, text, sampled in zip(names, texts, sampled_token_ids, strict=True)
        ]
        return self._coordinator.propose(rows, self._request, alive)

    def _names(self, texts: Sequence[Tokens]) -> tuple[Sequence[str], Collection[str]]:
        assert self._coordinator is not None
        if self._runner is not None:
            return self._runner.names[: len(texts)], self._runner.alive
        names = self._identity.names(texts, self._coordinator.sessions)
        return names, self._identity.alive

    def _request(self, name: str) -> Request | None:
        if self._runner is not None:
            return self._runner.request(name)
        return Request(Sampling(), self._context)

    def _scheduled(self, name: str, prompt: list[int], request: Request) -> None:
        assert self._coordinator is not None
        self._coordinator.open(Row(name, np.array(prompt, np.int32), False), request)

    @property
    def metrics(self) -> dict[str, float]:
        """The counters so far; none on a rank that does not draft."""
        return {} if self._coordinator is None else dict(self._coordinator.metrics)

    def close(self) -> None:
        """End the drafter."""
        if self._coordinator is not None:
            self._coordinator.close()
