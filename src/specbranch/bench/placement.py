"""Who has which hardware: the placements that every method is measured on."""

from __future__ import annotations

from enum import StrEnum

_MARK = "@each"


class Placement(StrEnum):
    """How the hardware is given out.

    Attributes:
        EQUAL: every method has all of it, and uses it as it is fastest.
        EACH: the target has a device, and the draft another one, whatever the method; a method
            without a draft has the target's alone. It is the setting of the paper's tables.
    """

    EQUAL = "equal hardware"
    EACH = "a device each"

    @classmethod
    def of(cls, name: str) -> Placement:
        """That of a contender."""
        return cls.EACH if name.endswith(_MARK) else cls.EQUAL


def a_device_each(name: str) -> str:
    """What a contender is called where the models have a device each."""
    return name + _MARK


def method_name(name: str) -> str:
    """A contender's method, wherever it runs."""
    return name.removesuffix(_MARK)
