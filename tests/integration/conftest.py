"""Fixtures of the executors' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from specbranch.executors.process import ProcessExecutor
from tests.integration.executor_workers import CPUS, Echo


@pytest.fixture
def process() -> Iterator[ProcessExecutor[Echo]]:
    executor = ProcessExecutor(Echo, "draft", CPUS, timeout=30)
    yield executor
    executor.close()
