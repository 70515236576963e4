"""A state directory has one user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from muxflow import state_lock


def test_a_directory_that_is_held_is_refused_and_still_names_its_holder(tmp_path: Path) -> None:
    with state_lock.hold(tmp_path, "monitor"):
        with pytest.raises(OSError, match="in use by another monitor"):
            state_lock.hold(tmp_path, "monitor")
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_that_was_let_go_is_taken_again(tmp_path: Path) -> None:
    state_lock.hold(tmp_path, "monitor").close()
    state_lock.hold(tmp_path, "monitor").close()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
