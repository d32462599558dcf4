"""Errors whose message is written for the person who typed the command."""


class SpecBranchError(Exception):
    """Base of the errors that the command line prints as one line."""


class InputError(SpecBranchError, ValueError):
    """What the caller gave is wrong; the message says what would be right."""


class UnsupportedModelError(SpecBranchError):
    """The model cannot be decoded losslessly here; the message says why."""
