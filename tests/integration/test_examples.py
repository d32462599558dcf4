"""Each example runs with the bundled pair and says what its first line promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What each prints, as a pattern.
PRINTED = {
    "quickstart": r"^def quicksort\(xs\):[\s\S]+\n48 tokens in \d+ target calls:\n",
    "stream": r"^Question: [\s\S]+\nAnswer: .+",
    "many_requests": r"(?:'.+' -> ['\"].*['\"]\n  (?:length|stop): \d+ tokens, .+\n){3}",
    "transformers_hook": r"the same tokens as without the draft: True\n$",
    "engine_loop": r"quicksort.+: length, 32 tokens\n.+: abort, \d+ tokens\n.+ tokens\n$",
    "simulate_profile": r"plain decoding[\s\S]+SpecBranch[\s\S]+made up for the example",
}


def test_every_example_has_a_test():
    assert {file.stem for file in EXAMPLES} == set(PRINTED)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_it_runs(file):
    environment = os.environ | {"SPECBRANCH_ENFORCE_EAGER": "1"}
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED[file.stem], done.stdout), done.stdout


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_it_is_short(file):
    assert len(file.read_text().splitlines()) < 60
