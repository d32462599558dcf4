"""What the proposer and the drafter's process tell each other: plain numbers, no tensors.

They pass between two interpreters, which may be of two environments. `PROTOCOL` is their version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PROTOCOL = 1


@dataclass(frozen=True)
class Sampling:
    """How a request is sampled; names and meanings as in vLLM."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Start:
    """The first message: which draft to load, and for what.

    Attributes:
        draft, dtype, device, quantization, eager: see `Settings`.
        target: the target's name, whose tokenizer is compared with the draft's; empty is no check.
        cores: a list of cores such as ``0-3,6``; None leaves them as they are.
        vocabulary: the target's number of logits.
        gamma: γ, most tokens that a chain has.
        k_max: most branches of a text.
        context: most tokens of a text.
        retrieval: whether n-gram matches are drafted, where a text repeats itself.
    """

    draft: str
    target: str
    dtype: str
    device: str
    quantization: str | None
    eager: bool
    cores: str | None
    vocabulary: int
    gamma: int
    k_max: int
    context: int
    retrieval: bool = True
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Open:
    """The start of a text, or a part of it.

    Attributes:
        id: the name of the text.
        tokens: ids, int32 as bytes.
        last: whether the text starts with the tokens that came so far; more are to come otherwise.
        sampling: of the text.
        capacity: most tokens that it will have.
    """

    id: int
    tokens: bytes
    last: bool
    sampling: Sampling
    capacity: int


@dataclass(frozen=True)
class Advance:
    """What was committed of one text, and what is wanted next.

    The text is now the first `length` tokens of the valid path, which may end in a chain, and then
    `tokens` (see `workers.messages.CommitUpdate`).

    Attributes:
        id: of the text.
        length, tokens, survivor: as in `CommitUpdate`.
        committed: tokens of the text; what the path has beyond them is the chain.
        room: most tokens after the committed ones that can be of use.
        wanted: tokens to draft at once, before branches; 0 where nobody waits for them.
    """

    id: int
    length: int
    tokens: tuple[int, ...]
    survivor: int | None
    committed: int
    room: int
    wanted: int = 0


@dataclass(frozen=True)
class Step:
    """A step of the engine: texts that advanced, and texts that ended.

    Attributes:
        number: of the step, rising.
    """

    number: int
    texts: tuple[Advance, ...] = ()
    closed: tuple[int, ...] = ()


# What a branch is longer by: its index in the order in which those of its text were started; how
# many tokens of the chain its outcome accepts; further ids, the first of a branch being the token
# that the target wrote in its outcome; and the acceptance estimated for each token after that one.
# A tuple, since a message has a hundred of them, which vLLM unpickles between two steps.
Grown = tuple[int, int, tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Chain:
    """A chain that was wanted.

    Attributes:
        tokens: ids.
        acceptance: estimated for each token, given those before.
    """

    tokens: tuple[int, ...]
    acceptance: tuple[float, ...]


@dataclass(frozen=True)
class Reply:
    """News of texts, each with the number of the step in which it advanced last.

    Attributes:
        number: of the newest step that the drafter knows.
        chains: by text.
        grown: branches of texts.
    """

    number: int
    chains: tuple[tuple[int, int, Chain], ...] = ()
    grown: tuple[tuple[int, int, tuple[Grown, ...]], ...] = ()


@dataclass(frozen=True)
class Ready:
    """The draft is loaded.

    Attributes:
        what: it is, for people.
        protocol: of the messages there.
    """

    what: str
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Resting:
    """Memory ran out on these texts; they are closed."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """The drafter ends.

    Attributes:
        kind: `input` if another start would fail in the same way.
        why: in one line.
    """

    kind: Literal["input", "error"]
    why: str


Message = Start | Open | Step
News = Ready | Reply | Resting | Failed
