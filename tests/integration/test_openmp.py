"""Spinning of OpenMP threads, and the environment of the program that imports the package."""

import os
import subprocess
import sys

import pytest

LIMITED = "from specbranch.openmp import limited_spinning\nwith limited_spinning(): import torch"


@pytest.mark.parametrize(
    ("program", "environment", "spins"),
    [
        (LIMITED, {}, "'10000'"),
        ("from specbranch import LLM", {}, "'10000'"),
        (LIMITED, {"GOMP_SPINCOUNT": "7"}, "'7'"),
        (LIMITED, {"OMP_WAIT_POLICY": "PASSIVE"}, "'0'"),
        ("from specbranch.openmp import limit_spinning; limit_spinning()", {}, "'10000'"),
    ],
)
def test_threads_do_not_spin_for_long(program, environment, spins):
    done = in_new_process(f"{program}\nimport torch", environment)
    # libgomp reports what it read when it was loaded.
    assert f"GOMP_SPINCOUNT = {spins}" in done.stderr


@pytest.mark.parametrize(
    "program", ["import specbranch", "from specbranch import SamplingParams", LIMITED]
)
@pytest.mark.parametrize("own", [None, "7"])
def test_an_import_leaves_the_environment_alone(program, own):
    told = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = in_new_process(f"{program}\n{told}", {} if own is None else {"GOMP_SPINCOUNT": own})
    assert done.stdout.strip() == str(own)


def in_new_process(program, environment):
    known = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    known |= {"OMP_DISPLAY_ENV": "verbose"} | environment
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=known, capture_output=True, text=True, check=True)
