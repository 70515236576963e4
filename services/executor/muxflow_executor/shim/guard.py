"""A second process beside the shim that does one thing: when the shim is killed, it kills what is left of the attempt.

The kernel ends the program with the shim, but not what the program has started. The executor would find that, unless
it was killed too: then something of this attempt could live on beyond the node's lease, while the next attempt runs
somewhere else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final, NoReturn

from muxflow_executor.shim import descendants
from muxflow_executor.shim.records import stat_fields

_LOOK_AGAIN_S: Final = 0.005
_QUIET_LOOKS: Final = 3
"""Looks in a row that must find nothing: a process may have forked while it was looked at."""


def post(mark: bytes, cgroup: str | None) -> int:
    """Leave a guard; give back its pid. `mark` is what every process of the attempt has in its environment, unless it
    dropped it.

    The guard is a child of this process and ends with the last of its descendants, in `descendants.end_all`.
    """
    read_end, write_end = os.pipe()  # the write end is open in this process only: exec closes it
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        _stand_guard(read_end, mark, cgroup)
    os.close(read_end)
    return pid


def _stand_guard(read_end: int, mark: bytes, cgroup: str | None) -> NoReturn:
    try:
        os.setsid()
        descendants.be_called("muxflow-guard")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(0, 1)  # the executor waits for the end of descriptor 1
        while os.read(read_end, 1):
            pass
        if not os.path.exists("exit.json"):
            _kill_what_is_left(mark, cgroup)
    finally:
        os._exit(0)


def _kill_what_is_left(mark: bytes, cgroup: str | None) -> None:
    quiet = 0
    while quiet < _QUIET_LOOKS:
        descendants.kill_cgroup(cgroup)
        found = [pid for pid in _marked(mark) if pid != os.getpid()]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if found else quiet + 1
        time.sleep(_LOOK_AGAIN_S)


def _marked(mark: bytes) -> list[int]:
    """Find living processes that carry the attempt's mark in their environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0") and stat_fields(int(name))[0] not in {"Z", "X"}:
                    found.append(int(name))
    return found
