"""A wall clock that a test sets, for one process: libfaketime. Clocks that only run (boot time) stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIBRARY = "libfaketimeMT.so.1"


class Clock:
    """Right at first."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set_by("+0")

    def set_by(self, seconds: str) -> None:
        """Set it relative to the right time, such as ``-3600``; processes that use it see it at once."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{seconds}s\n")
        draft.replace(self._file)

    @property
    def env(self) -> dict[str, str]:
        """Environment of a process that shall use it."""
        return {
            "LD_PRELOAD": _library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }


def _library() -> str:
    found = next(
        (path for lib in ("/usr/lib", "/usr/lib64") for path in Path(lib).glob(f"**/faketime/{LIBRARY}")), None
    )
    if found is None:
        message = f"{LIBRARY} is not installed (Debian, Ubuntu: apt install faketime)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return str(found)
