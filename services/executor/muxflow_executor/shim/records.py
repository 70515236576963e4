"""Files of an attempt as the shim reads and writes them, and what names a process for good."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Any
TEXT_CHARACTERS: Final = 2_000
"""Bound on every free text that leaves the node, so that no event grows too large to be published."""


def shorten(text: str) -> str:
    """Cut a text for people that is too long; an ellipsis says so."""
    return text if len(text) <= TEXT_CHARACTERS else f"{text[: TEXT_CHARACTERS - 1]}…"


def claim(directory: str) -> bool:
    """Become the only one that may start the program of this attempt; False when somebody else already is.

    Whoever links ``shim.json`` first has it: a shim, or an executor that found none after its restart.
    """
    mine = f"{directory}/shim.json.{os.getpid()}"
    with open(mine, "w", encoding="utf-8") as file:
        json.dump(identity(os.getpid()), file)
    try:
        os.link(mine, f"{directory}/shim.json")
    except FileExistsError:
        return False
    finally:
        os.unlink(mine)
    return True


def asked_to_stop() -> str | None:
    """Read the cause of the executor's wish to stop, if there is one."""
    try:
        return str(read_json("stop.json")["cause"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "shutdown"


def read_json(path: str) -> Any:
    with open(path, "rb") as file:
        return json.load(file)


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replace a file in one step: readers see the old one or the whole new one, also after a power cut."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)
    sync_directory(os.path.dirname(path) or ".")


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def identity(pid: int) -> dict[str, Any]:
    """Name a process for good: pids are used again, but not with the same start time within one boot."""
    return {"pid": pid, "start_ticks": int(stat_fields(pid)[19]), "boot_id": boot_id()}


def stat_fields(pid: int) -> list[str]:
    """Fields of ``/proc/<pid>/stat`` behind the name: 0 state, 1 parent, 3 session, 19 start in ticks since boot."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()  # the name itself may hold anything


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: goes on during suspend, is never set."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
