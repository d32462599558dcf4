"""Settings that must stand before torch and transformers are first imported."""

import os

import pytest

# No test may reach for the network: a name that is no folder is then refused at once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other over matrices this small are slower than one, many times so
# where other work shares the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that take two threads all the same share the cores with other tests: none may spin there.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# What helpers assert is explained as in the tests themselves.
pytest.register_assert_rewrite("tests.forwards", "tests.refusals")
