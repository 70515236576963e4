"""Log files of the kept programs: bounded, and readable from their end.

Programs write to their file themselves, so that they go on when nobody reads: a supervisor that hangs or dies must not
stop them. The bound is kept from outside: a file that has grown too large is copied aside and emptied. Programs append
(O_APPEND), so that they write on at the new end; lines written between copy and truncation are lost.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

MAX_BYTES: Final = 16 * 2**20
"""Size at which a log file is put aside; at most twice as much is kept of each program."""

_CALM: Final = ("debug", "info")
_FAREWELL: Final = "stopped"
"""What every service of ours logs at its end, whyever it ends."""
_CALM_OF_SERVER: Final = re.compile(r"^\[\d+\] \S+ \S+ \[(INF|DBG|TRC)\]")


def bound(log: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Put a log that is too large aside, as ``<name>.log.1``; says whether it did.

    When there is no room for the copy, the log is emptied without one: running on matters more than what was logged.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    aside = log.with_name(f"{log.name}.1")
    try:
        shutil.copyfile(log, aside)
    except OSError:
        aside.unlink(missing_ok=True)
    with log.open("r+b") as file:
        file.truncate(0)
    return True


def last_words(log: Path, max_chars: int = 300) -> str:
    """Give the last line of a log for people, in one line; empty if there is none."""
    return " ".join(_readable(_last_line(log)).split())[:max_chars]


def complaint(log: Path) -> str:
    """Give the last line of a log if it is a warning or an error, or was not logged at all, as what Python prints."""
    line = _last_line(log)
    if _CALM_OF_SERVER.search(line) or _fields(line).get("level") in _CALM:
        return ""
    return last_words(log)


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 8192))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    said = (line.strip() for line in reversed(lines) if line.strip())
    return next((line for line in said if _fields(line).get("event") != _FAREWELL), "")


def _readable(line: str) -> str:
    fields = _fields(line)
    if "event" not in fields:
        return line
    return ": ".join(str(fields[key]) for key in ("event", "error") if fields.get(key))


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


class Follower:
    """Reads what is appended to a log file, across truncation."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        self._partial = b""

    def lines(self) -> list[str]:
        """Give the complete lines written since the last call."""
        try:
            with self._log.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read(2**20)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *complete, self._partial = (self._partial + data).split(b"\n")
        return [line.decode(errors="replace") for line in complete]
