"""SIGTERM, SIGUSR1 and SIGCHLD as things to wait for beside the program's output."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Final

from muxflow_executor.shim.descendants import wait_any

if TYPE_CHECKING:
    from muxflow_executor.shim.output import Output

_READ_BYTES: Final = 4096


class Signals:
    """From construction on, SIGTERM is the wish to stop, and SIGUSR1 the wish to kill what has not stopped.

    Who ends a terminal or a session does not end the shim.
    """

    def __init__(self) -> None:
        self.told_to_stop = False
        self.told_to_kill = False
        self._child_ended = True
        self._read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGUSR1, self._on_sigusr1)
        signal.signal(signal.SIGCHLD, self._on_sigchld)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the executor starts us with both blocked

    def _on_sigterm(self, *_: object) -> None:
        self.told_to_stop = True

    def _on_sigusr1(self, *_: object) -> None:
        self.told_to_kill = True

    def _on_sigchld(self, *_: object) -> None:
        self._child_ended = True

    def reap(self, pid: int) -> int | None:
        """Collect ended children, adopted orphans included; give back `pid`'s wait status once it has ended."""
        while self._child_ended:
            self._child_ended = False
            while (child := wait_any())[0]:
                if child[0] == pid:
                    return child[1]
        return None

    def wait(self, output: Output, timeout_ns: int) -> None:
        """Wait for a signal, for output, or for the time; take in what output there is."""
        poller = select.poll()
        poller.register(self._read_end, select.POLLIN)
        if output.open:
            poller.register(output.read_end, select.POLLIN)
        for fd, _ in poller.poll(timeout_ns / 1e6):
            if fd == self._read_end:
                os.read(self._read_end, _READ_BYTES)
            else:
                output.take()
