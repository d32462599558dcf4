"""Errors whose message is written for the person who typed the command."""


class SpecBranchError(Exception):
    """Base of the errors that the command line prints as one line."""


class InputError(SpecBranchError, ValueError):
    """What the caller gave is wrong; the message says what would be right."""


class UnsupportedModelError(SpecBranchError):
    """The model cannot be decoded losslessly here; the message says why."""


class ExecutorError(SpecBranchError):
    """A executor died, hung or ran out of memory: its model, and what it held, are gone.

    Attributes:
        executor: name of the executor.
    """

    def __init__(self, executor: str, how: str) -> None:
        super().__init__(executor, how)
        self.executor = executor

    def __str__(self) -> str:
        executor, how = self.args
        return f"the {executor} executor {how}"
