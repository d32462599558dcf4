"""The command line: ``specbranch generate``, ``specbranch info``."""

from specbranch.cli.main import main

__all__ = ["main"]
