"""How anything is refused that cannot be done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specbranch.errors import SpecBranchError


def refusal(kind: type[SpecBranchError], call: Callable[[], object]) -> str:
    """The message `call` is refused with: one line, and no longer than a person will read."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 600
    return message
