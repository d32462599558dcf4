"""Workers for tests of executors; at module level, so that another process can import them."""

from __future__ import annotations

import os
import signal
import time

import torch

from specbranch.errors import InputError
from specbranch.executors.base import Worker


class Echo(Worker):
    """Does what it is told, and says what became of it."""

    def echo(self, value):
        return value

    def where(self):
        return os.getpid(), sorted(os.sched_getaffinity(0)), torch.get_num_threads()

    def forwards(self, *tokens):
        for count in tokens:
            self.meter(count)
        return len(tokens)

    def fail(self, error):
        raise error

    def die(self, number=signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(60)

    def leave(self, code):
        os._exit(code)

    def hang(self):
        while True:
            time.sleep(1)

    def count(self, most):
        """Count until told to stop; returns how far it came."""
        for number in range(most):
            self.meter(1)
            if self.stopped():
                return number
            time.sleep(0.001)
        return most

    def lambda_(self):
        return lambda: None


def make_nothing():
    raise InputError("there is no such worker")
