"""Environment of OpenMP: how long idle threads spin, and to which cores threads are bound.

On Linux, `torch` computes with libgomp. By default its idle threads spin for longer than a short
forward pass takes, on cores that the other executor needs at that time; sequential drafting on two
cores is slower by a third then. `GOMP_SPINCOUNT` limits the spinning. libgomp reads its environment
once, when it is loaded together with `torch`. So the limit is set in three places, none of which
changes the environment of a program that imports this package:

* In processes that an executor starts, `child_environment` sets it.
* In a program that imports `torch` through this package (``from specbranch import LLM``), the
  environment has it only during that import (`limited_spinning`).
* The command line, whose process is our own, may set it for good (`limit_spinning`).

A program that imports `torch` first can set ``GOMP_SPINCOUNT=10000`` itself before it starts. A
value of `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` in the environment always takes precedence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

SPINCOUNT = "GOMP_SPINCOUNT"
SPINS = "10000"  # long enough to bridge a forward pass, and no longer
BINDING = ("OMP_PROC_BIND", "OMP_PLACES")


def limit_spinning() -> None:
    """Limit the spinning in this process and in those it starts, unless the environment says so.

    Without effect once `torch` is imported.
    """
    if _may_limit(os.environ):
        os.environ[SPINCOUNT] = SPINS


@contextmanager
def limited_spinning() -> Iterator[None]:
    """Limit the spinning if `torch` is first imported in this block; restore the environment after.

    Without effect once `torch` is imported.
    """
    if not _may_limit(os.environ):
        yield
        return
    os.environ[SPINCOUNT] = SPINS
    try:
        yield
    finally:
        os.environ.pop(SPINCOUNT, None)


def child_environment(places: Sequence[int] = ()) -> dict[str, str]:
    """Return the environment of a process that an executor starts.

    Args:
        places: cores to bind the OpenMP threads to, in order, one thread to a core. Left to the
            scheduler, threads that sleep between forward passes often wake up on the same core.
            A binding of the whole program would put both executors on the same cores, so this one
            takes precedence. Empty keeps what the environment says.
    """
    environment = dict(os.environ)
    if SPINCOUNT not in environment and "OMP_WAIT_POLICY" not in environment:
        environment[SPINCOUNT] = SPINS
    if places:
        environment["OMP_PROC_BIND"] = "true"
        environment["OMP_PLACES"] = ",".join(f"{{{core}}}" for core in places)
    return environment


def forget_binding() -> None:
    """Remove the binding from this process's environment, once `torch` has read it.

    Libraries such as sentencepiece bring a libgomp of their own. It may be built without support of
    affinity and then prints a warning if it finds a binding.
    """
    for variable in BINDING:
        os.environ.pop(variable, None)


def _may_limit(environment: Mapping[str, str]) -> bool:
    chosen = SPINCOUNT in environment or "OMP_WAIT_POLICY" in environment
    return not chosen and "torch" not in sys.modules
