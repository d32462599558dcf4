"""Profiles of the paper's four pairs, by published figures and a roofline derived from them.

All on NVIDIA A100 80GB, weights of 16 bits, batch 1. gpt-fast (PyTorch, README and blog post of
2023-11-30) publishes for Llama-2-7B on one of them, power-limited to 330 W: compiled 104.9 tokens/s
at 1397.31 GB/s, of an achievable peak of about 1700 GB/s; eager 25.5 tokens/s, which waits for the
CPU to launch kernels. So, derived here:

- reading weights takes their bytes ÷ 1700 GB/s of each GPU,
- what the 7B takes beyond that, ÷ its 32 layers, is what a compiled layer adds (53 µs),
- 1 s ÷ 25.5 ÷ 32 is what an eager layer takes to launch (1.2 ms), whatever its size,
- arithmetic takes 2 operations a weight and token at half of the data sheet's 312 teraflops, beside
  the reading: a dozen tokens or branches take as long as one.

Of Llama-3.1-70B on two GPUs this says 22.0 tokens/s; gpt-fast publishes 21.32 of Llama-2-70B. The
paper (arXiv 2506.01979) gives one figure, a verification of 31.4 ms, of a pair it does not name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specbranch.errors import InputError
from specbranch.executors.latency_profile import Devices, ModelLatency, Profile

BANDWIDTH = 1700e9  # bytes/s that an A100 reads (gpt-fast, README: "about 1700 GB/s")
COMPILED = 1 / 104.9  # seconds a token of Llama-2-7B (gpt-fast, README)
EAGER = 1 / 25.5  # the same uncompiled (gpt-fast, blog post)
FLOPS = 312e12 / 2  # dense 16-bit operations/s (NVIDIA, A100 data sheet), half of them reached
CALL = 1e-4  # seconds of a message to a process and back, as `specbranch info` finds on a CPU
LONGEST = 4096  # tokens of the longest forward that is told apart


@dataclass(frozen=True)
class Model:
    """A model of 16-bit weights.

    Attributes:
        parameters: of the whole model.
        layers: as its configuration says.
    """

    parameters: float
    layers: int

    def costs(self, gpus: int, eager: bool) -> ModelLatency:
        """What its forwards take on so many A100s, each of which reads its part of every layer."""

        def seconds(tokens: int) -> float:
            reading = 2 * self.parameters / BANDWIDTH
            computing = 2 * self.parameters * tokens / FLOPS
            compiled = max(reading, computing) / gpus + self.layers * COMPILED_LAYER
            return max(compiled, self.layers * EAGER_LAYER) if eager else compiled

        return ModelLatency({n: seconds(n) for n in (1, 16, 64, 256, 1024, LONGEST)}, CALL)


LLAMA_7B = Model(6.74e9, 32)
COMPILED_LAYER = (COMPILED - 2 * LLAMA_7B.parameters / BANDWIDTH) / LLAMA_7B.layers
EAGER_LAYER = EAGER / LLAMA_7B.layers


@dataclass(frozen=True)
class RecordingSetup:
    """A pair and the GPUs it needs.

    Attributes:
        target, draft: the models.
        names: of both.
        devices: so many that the weights, and some gigabytes of cache, fit their 80 GB each; a
            draft that does not fit beside the target has its own GPU even with sequential methods.
    """

    target: Model
    draft: Model
    names: str
    devices: Devices

    def profile(self, eager: bool) -> Profile:
        target, draft = self.target.costs(self.devices.plain, eager), self.draft.costs(1, eager)
        kind = "eager" if eager else "compiled"
        source = (
            f"derived: {self.names} in 16 bits, {kind}, on A100 80GB, by weights ÷ bandwidth and a "
            f"cost for each layer, from gpt-fast's {'25.5' if eager else '104.9'} tokens/s of "
            "Llama-2-7B"
        )
        return Profile(target, draft, devices=self.devices, source=source)


SETTINGS = {
    "68m-7b": RecordingSetup(
        LLAMA_7B, Model(68e6, 2), "LLaMA 68M & LLaMA-2 7B", Devices("GPU", 1, 1, 2)
    ),
    "68m-13b": RecordingSetup(
        Model(13.0e9, 40), Model(68e6, 2), "Vicuna 68M & 13B", Devices("GPU", 1, 1, 2)
    ),
    "1.3b-33b": RecordingSetup(
        Model(33.3e9, 62), Model(1.35e9, 24), "DeepSeek-Coder 1.3B & 33B", Devices("GPU", 1, 1, 2)
    ),
    "8b-70b": RecordingSetup(
        Model(70.6e9, 80), Model(8.03e9, 32), "LLaMA-3.1 8B & 70B", Devices("GPU", 2, 3, 3)
    ),
}


def builtin() -> Mapping[str, Profile]:
    """The built-in profiles by name; those that end in `-eager` are of uncompiled models."""
    return {
        f"{name}{'-eager' if eager else ''}": setting.profile(eager)
        for name, setting in SETTINGS.items()
        for eager in (False, True)
    }


def find_profile(asked: str) -> Profile:
    """A built-in profile by its name, or one from a file.

    Raises:
        InputError: there is neither, or the file holds none.
    """
    known = builtin()
    if asked in known:
        return known[asked]
    if not Path(asked).exists():
        raise InputError(f"no profile '{asked}': give a file, or one of {', '.join(known)}")
    return Profile.load(Path(asked))
