"""The settings: `specbranch` in vLLM's `--additional-config`, and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Self

from specbranch.errors import InputError

PREFIX = "SPECBRANCH_VLLM_"


@dataclass(frozen=True)
class Settings:
    """What can be set.

    vLLM compiles the target anew for each `additional_config`. So every setting may be given as a
    variable of the environment instead, such as ``SPECBRANCH_VLLM_K_MAX=4``, which takes
    precedence.

    Attributes:
        draft: a bundled model's name, a folder, a GGUF file, or a name on the Hugging Face hub.
        device: of the draft: `cpu`, `cuda:1`, …
        cores: of the draft's process, such as ``0-3,6``; by default it may use all.
        dtype: of the draft: `auto`, `float32`, `bfloat16` or `float16`.
        quantization: of the draft: `int8`, or None.
        enforce_eager: the draft is not compiled. On a CPU a compiled draft runs its texts one after
            another, an uncompiled one all together.
        python: the interpreter of the draft's process, which has `specbranch` installed; by default
            that of vLLM.
        k_max: most branches of a request.
        retrieval: n-gram matches are drafted, where a text repeats itself.
        speculate: `auto` verifies less where that commits more tokens a second at this number of
            requests, down to nothing; `always` verifies all that has some chance.
        wait: seconds that vLLM may wait for a draft where no branch fits; 0 never waits.
        timeout: seconds without an answer after which the drafter is started again.
        startup_timeout: seconds that vLLM's start waits for the draft. After them it goes on, and
            requests are drafted for once the draft is there.
    """

    draft: str
    device: str = "cpu"
    cores: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    enforce_eager: bool = False
    python: str | None = None
    k_max: int = 8
    retrieval: bool = True
    speculate: str = "auto"
    wait: float = 0.05
    timeout: float = 20.0
    startup_timeout: float = 300.0

    @classmethod
    def of(cls, config: Any, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings in vLLM's `additional_config`, and those of the environment.

        Raises:
            InputError: an unknown setting, a value of another type, or no draft.
        """
        given = config.get("specbranch") if isinstance(config, Mapping) else None
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"specbranch's settings must be an object, not {given!r}")
        values: dict[str, Any] = dict(given or {})
        known = {field.name: str(field.type) for field in fields(cls)}
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise InputError(f"specbranch has no setting '{name}': {hint}")
        for name in known:
            if (variable := environment.get(PREFIX + name.upper())) is not None:
                values[name] = variable
        if "draft" not in values:
            raise InputError(
                'specbranch needs a draft: --additional-config \'{"specbranch": {"draft": …}}\''
            )
        found = cls(**{name: _value(name, known[name], value) for name, value in values.items()})
        if found.speculate not in ("auto", "always"):
            raise InputError(
                f"specbranch's speculate must be auto or always, not '{found.speculate}'"
            )
        return found


def _value(name: str, kind: str, given: Any) -> Any:
    """A setting's value in its type; texts of the environment are converted."""
    try:
        if kind.endswith("| None") and given in (None, ""):
            return None
        if kind == "bool":
            if isinstance(given, bool):
                return given
            return {"1": True, "true": True, "0": False, "false": False}[str(given).lower()]
        if kind == "int":
            value: float = int(given)
            if value != float(given) or value < 1:
                raise ValueError(given)
            return value
        if kind == "float":
            value = float(given)
            if not 0 <= value < float("inf"):
                raise ValueError(given)
            return value
    except (KeyError, TypeError, ValueError):
        wanted = {"bool": "true or false", "int": "a whole number from 1", "float": "seconds"}
        raise InputError(f"specbranch's {name} must be {wanted[kind]}, not {given!r}") from None
    if not isinstance(given, str | int):
        raise InputError(f"specbranch's {name} must be a text, not {given!r}")
    return str(given)
