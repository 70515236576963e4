"""Starting shims ahead of need: an interpreter takes tens of milliseconds to start, a handover one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from muxflow_executor.shim.handover import pack

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
# -I -S leave out site-packages and all that an environment could change. Our root goes to the end of the path, so that
# nothing beside our package can stand in for the standard library.
_PROGRAM: Final = "import sys; sys.path.append(sys.argv[1]); from muxflow_executor.shim.main import main; main()"


class Shim(msgspec.Struct, frozen=True, kw_only=True):
    """A shim that was started; it waits for the handover. Its descriptors are the owner's to close."""

    pid: int
    handover_fd: int
    started_fd: int
    """Reaches its end when the shim has written ``started.json`` or ``exit.json``, or has died."""


def spawn(label: str) -> Shim:
    """Start a shim, in a session of its own. It ends by itself if this process ends before the handover.

    `label` stands in its command line and says to people whose it is.
    """
    handover_read, handover_write = os.pipe()
    started_read, started_write = os.pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT, label],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, handover_read, 0),
                (os.POSIX_SPAWN_DUP2, started_write, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
            setsigmask=[signal.SIGTERM, signal.SIGUSR1],  # kept until it can take them as our wishes
        )
    except BaseException:
        os.close(handover_write)
        os.close(started_read)
        raise
    finally:
        os.close(handover_read)
        os.close(started_write)
    return Shim(pid=pid, handover_fd=handover_write, started_fd=started_read)


def hand_over(shim: Shim, directory: Path, environment: dict[str, str]) -> None:
    """Give an attempt to a waiting shim; BrokenPipeError if it has died. Blocks while the pipe is full."""
    with os.fdopen(shim.handover_fd, "wb") as pipe:
        pipe.write(pack(str(directory), environment))


def discard(shim: Shim) -> None:
    """Let a waiting shim end."""
    os.close(shim.handover_fd)
    os.close(shim.started_fd)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(shim.pid, 0)


class Spares:
    """One shim that waits. `take` never waits for a shim to become ready. Threads may call it at the same time."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._waiting: list[Shim] = []
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> Shim:
        """Give the one that waits, or start one."""
        try:
            return self._waiting.pop()
        except IndexError:
            return spawn(self._label)

    def refill(self) -> None:
        """Have one wait again."""
        with self._lock:
            if not self._waiting and not self._closed:
                self._waiting.append(spawn(self._label))

    def close(self) -> None:
        """Let it end."""
        with self._lock:
            self._closed = True
            while self._waiting:
                discard(self._waiting.pop())
