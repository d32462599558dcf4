"""Which request a row is, where the engine's own names are not to be had: by its text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specbranch.integrations.vllm.sessions import Sessions, Tokens

UNSEEN = 200  # steps after which a request that was not seen is taken to have ended


class PrefixIdentity:
    """Names rows by the longest known text that they continue.

    Of two requests with the same text either may be taken for the other, which is no harm: what is
    drafted depends on the text alone.
    """

    def __init__(self) -> None:
        self._order: list[str] = []
        self._seen: dict[str, int] = {}
        self._step = 0
        self._next = 0

    def names(self, texts: Sequence[Tokens], sessions: Sessions) -> list[str]:
        """A name for each row."""
        self._step += 1
        left = {key: sessions.committed(key) for key in sessions.keys}
        by_length = sorted(left, key=lambda key: -len(left[key]))
        names = []
        for place, text in enumerate(texts):
            before = self._order[place : place + 1]
            tried = [key for key in [*before, *by_length] if key in left]
            name = next((key for key in tried if continues(text, left[key])), None)
            if name is None:
                name, self._next = f"#{self._next}", self._next + 1
            left.pop(name, None)
            self._seen[name] = self._step
            names.append(name)
        self._order = names
        self._seen = {k: s for k, s in self._seen.items() if self._step - s <= UNSEEN}
        return names

    @property
    def alive(self) -> set[str]:
        """Names that were seen not long ago."""
        return set(self._seen)


def continues(text: Tokens, known: Tokens) -> bool:
    """Whether a text begins with a known one."""
    return len(known) <= len(text) and bool(np.array_equal(text[: len(known)], known))
