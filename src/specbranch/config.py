"""The configuration: each option is spelled once, as a field of one of these dataclasses.

`LLM(…)`, the command line and the `transformers` hook take the fields' names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from specbranch.errors import InputError

if TYPE_CHECKING:
    from specbranch.executors.latency_profile import Profile

Branching = Literal["outcomes", "point", "even"]
PaddingOption = int | None | Literal["auto"]
MOST_GAMMA = 15  # of γ = auto: with the last committed token a chain fills a forward of 16 tokens
MOST_BRANCHES = 12  # of k_max = auto

# Other names, which work too: users' of other engines, and those of before.
RENAMED = {
    "num_speculative_tokens": "gamma",
    "lanes": "executor",
    "lane_timeout": "executor_timeout",
    "width": "padding",
}


@dataclass(frozen=True)
class ModelConfig:
    """The models, and how they are loaded.

    Attributes:
        target: name of a bundled model, folder, GGUF file, or name on the Hugging Face hub.
        draft: likewise; None for none. `auto` is the shipped draft for a target that is bundled or
            that `pair` names, and none for a target of your own.
        pair: a pair by name, instead of a target (``specbranch pairs`` lists them). `draft` is then
            one of its own, too.
        hrad: the predictor: a file that ``specbranch hrad train`` wrote, None, `online`, which
            learns from the running text, or `auto`: the one that lies beside the draft, if it was
            trained for this target and γ.
        dtype: `auto`, `float32`, `bfloat16`, `float16`. With `auto` a GGUF file's matrices stay in
            their blocks on a CPU, computed with in float32; `float32` dequantizes them.
        quantization: `int8`: the target's linear layers have weights and activations of 8 bits, on
            a CPU with VNNI instructions. The text is then that of the quantized target.
        draft_quantization: likewise of the draft, which changes no text.
        device: where both models run. `target_device` and `draft_device` override it.
        sharded: spread the target over all GPUs (``device_map="auto"``).
        padding: tokens of a target forward. With `auto` and with a number the text of all methods
            is bit-identical. `auto` takes the forward's natural length where this machine's kernels
            are batch-invariant, and pads to 16 tokens elsewhere. A number pads to that. None runs
            forwards as they come; the texts of two methods may then part at near-ties.
        max_model_len: most tokens of a text, prompt included. The target's own limit by default.
        generation_config: `auto`: what `SamplingParams` leave open, but for the temperature, is as
            the target's ``generation_config.json`` has it. `none` (vLLM's word is `vllm`): nothing
            is cut off or penalized then. End-of-text tokens are the target's own either way.
        enforce_eager: run the models as `transformers` does. By default their short forwards are
            compiled on a CPU, once, which takes up to a minute, where there is a C++ compiler and
            the model is small enough to gain. ``SPECBRANCH_ENFORCE_EAGER=1`` does the same.
    """

    target: str = "target"
    draft: str | None = "auto"
    pair: str | None = None
    hrad: str | Path | None = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    draft_quantization: str | None = None
    device: str = "auto"
    target_device: str | None = None
    draft_device: str | None = None
    sharded: bool = False
    padding: PaddingOption = "auto"
    max_model_len: int | None = None
    generation_config: str = "auto"
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        check_padding(self.padding)
        if self.generation_config == "vllm":
            object.__setattr__(self, "generation_config", "none")
        if self.generation_config not in ("auto", "none"):
            raise InputError(
                f"generation_config must be auto or none, not {self.generation_config!r}"
            )
        if self.pair is not None and self.target != ModelConfig.target:
            raise InputError("give a target or a pair, not both")


@dataclass(frozen=True)
class SpeculativeConfig:
    """How to decode, and how much to draft. `auto` is what pays, by running estimates.

    Attributes:
        gamma: γ, most tokens drafted ahead in one round; users know it as `num_speculative_tokens`,
            which `EngineConfig.of` and `LLM` take. `auto` is as many as the draft has time
            for, and stops a branch stage when the chain is verified.
        epsilon: ε, a token's estimated acceptance below which a position is uncertain. `auto`
            drafts as long as that estimate is worth its time.
        k_max: most branches in one round. `auto` has those grow that are worth their time.
        branching: for what: the likeliest `outcomes` anywhere on the chain (docs/design.md), the
            candidates at the one branch `point` after it (the paper), or the best ones of every
            position alike, `even` (a fixed fan-out, as in SSD, arXiv 2603.03251).
        speculate: `always`, or `auto`: not while decoding by what the text repeats, or plainly, on
            the cores of both models is faster.
        use_hrad: whether the predictor is asked, where there is one. With `coupled` sampling, whose
            noise tells more, it is asked only beside a fixed ε.
        retrieval: whether a text that repeats itself is drafted from itself.
        method: of `methods.registry`; `auto` is `specbranch` with a draft and `lookup` without.

    Raises:
        InputError: a value out of its range.
    """

    gamma: int | Literal["auto"] = "auto"
    epsilon: float | Literal["auto"] = "auto"
    k_max: int | Literal["auto"] = "auto"
    branching: Branching = "outcomes"
    speculate: Literal["auto", "always"] = "auto"
    use_hrad: bool = True
    retrieval: bool = True
    method: str = "auto"

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("gamma", "k_max")}
        checks = [
            (name, value == "auto" or (_whole(value) and value >= 1), "1 or more, or auto")
            for name, value in counts.items()
        ]
        number = isinstance(self.epsilon, int | float) and 0 <= self.epsilon <= 1
        checks.append(("epsilon", self.epsilon == "auto" or number, "between 0 and 1, or auto"))
        for name, words in (
            ("branching", get_args(Branching)),
            ("speculate", ("auto", "always")),
        ):
            checks.append((name, getattr(self, name) in words, " or ".join(words)))
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}")

    @property
    def branches(self) -> int:
        """Most branches in one round."""
        return MOST_BRANCHES if self.k_max == "auto" else self.k_max

    @property
    def longest(self) -> int:
        """Most tokens drafted ahead in one round, however fast the draft is."""
        return MOST_GAMMA if self.gamma == "auto" else self.gamma

    @property
    def retrieved(self) -> int:
        """Most of them that may be an n-gram match."""
        return self.longest if self.retrieval else 0

    @property
    def branch_tokens(self) -> int:
        """Most tokens that the branches of one round hold together."""
        return self.branches * (self.longest + 1)


@dataclass(frozen=True)
class ExecutorConfig:
    """Where the models run.

    Attributes:
        executor: `process` (the draft in a process of its own, the target in yours, each on its own
            cores or GPU), `thread` (each on its own CUDA stream), `inline` (one after the other),
            `virtual` (timed by `profile`), or `auto`.
        target_cores, draft_cores: lists such as ``0-2``. By default the cores are divided.
        executor_timeout: seconds after which a process that does not answer is given up.
        startup_timeout: seconds after which a process that still loads its model is given up.
        profile: latencies for the virtual executor.

    Raises:
        InputError: a timeout that is not positive.
    """

    executor: str = "auto"
    target_cores: str | None = None
    draft_cores: str | None = None
    executor_timeout: float = 600.0  # reading a long prompt on a slow CPU takes minutes
    startup_timeout: float = 1800.0  # a download may take so long
    profile: Profile | None = None

    def __post_init__(self) -> None:
        for name in ("executor_timeout", "startup_timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be more than 0 seconds, not {getattr(self, name):g}")


@dataclass(frozen=True)
class SchedulerConfig:
    """Which texts run.

    Attributes:
        max_num_seqs: most texts that have caches at the same time; the others wait.

    Raises:
        InputError: it is below 1.
    """

    max_num_seqs: int = 64

    def __post_init__(self) -> None:
        if not (_whole(self.max_num_seqs) and self.max_num_seqs >= 1):
            raise InputError(f"max_num_seqs must be 1 or more, not {self.max_num_seqs!r}")


@dataclass(frozen=True)
class EngineConfig:
    """All of it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    speculative: SpeculativeConfig = field(default_factory=SpeculativeConfig)
    executors: ExecutorConfig = field(default_factory=ExecutorConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    @classmethod
    def of(cls, **options: Any) -> Self:
        """From the names of fields, each of which is a field of one part.

        Raises:
            InputError: an unknown name, with the nearest known one; or a value out of its range.
        """
        given = {RENAMED.get(name, name): value for name, value in options.items()}
        for name, other in RENAMED.items():
            if name in options and other in options:
                raise InputError(f"{name} and {other} are one option: give one of them")
        if given.get("method", "") is None:
            given["method"] = SpeculativeConfig.method
        parts: dict[str, Any] = {}
        for part, kind in (
            ("model", ModelConfig),
            ("speculative", SpeculativeConfig),
            ("executors", ExecutorConfig),
            ("scheduler", SchedulerConfig),
        ):
            names = {field.name for field in fields(kind)}
            parts[part] = kind(**{name: given.pop(name) for name in names & given.keys()})
        if given:
            name = min(given)
            near = get_close_matches(name, [*option_names(), "num_speculative_tokens"], n=1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(option_names())}"
            raise InputError(f"unknown option '{name}': {hint}")
        return cls(**parts)


def option_names() -> list[str]:
    """Names of all options."""
    kinds = (ModelConfig, SpeculativeConfig, ExecutorConfig, SchedulerConfig)
    return [field.name for kind in kinds for field in fields(kind)]


def check_padding(padding: PaddingOption) -> None:
    """Refuse what is no padding.

    Raises:
        InputError: saying what would do.
    """
    if not (padding is None or padding == "auto" or (_whole(padding) and padding >= 1)):
        raise InputError(f"padding must be auto, 1 or more, or None, not {padding!r}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
