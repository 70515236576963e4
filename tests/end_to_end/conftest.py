"""Machines that `muxflow up` runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import Machine


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine with two GPUs, shared by the tests of a module."""
    one = Machine(tmp_path_factory.mktemp("machine") / "state")
    try:
        one.start("--gpu", "T4:16GiB", "--gpu", "A100:40GiB", "--node", "node.1")
        yield one
    finally:
        one.stop()


@pytest.fixture
def own_machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine of one test's own, to be started by it."""
    one = Machine(tmp_path / "state")
    try:
        yield one
    finally:
        one.stop()
