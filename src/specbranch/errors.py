"""Errors whose message is written for the person who typed the command."""


class SpecBranchError(Exception):
    """Base of the errors that the command line prints as one line."""


class InputError(SpecBranchError, ValueError):
    """What the caller gave is wrong; the message says what would be right."""


class UnsupportedModelError(SpecBranchError):
    """The model cannot be decoded losslessly here; the message says why."""


class LaneError(SpecBranchError):
    """A lane died, hung or ran out of memory: its model, and what it held, are gone.

    Attributes:
        lane: name of the lane.
    """

    def __init__(self, lane: str, how: str) -> None:
        super().__init__(lane, how)
        self.lane = lane

    def __str__(self) -> str:
        lane, how = self.args
        return f"the {lane} lane {how}"
