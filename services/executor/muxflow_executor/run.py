"""What the executor remembers of one attempt while it lives, and its hold on the attempt's shim."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from muxflow.contracts import Attempt
from muxflow_decisions.node import LocalAttempt, LocalState
from muxflow_executor.attempts import AttemptDirectory, Ended, ProcessRecord, Started
from muxflow_executor.processes import alive
from muxflow_executor.protection import ProtectedJob

if TYPE_CHECKING:
    from muxflow_executor.stopping import Descent


class Run:
    """One attempt in this process's care."""

    def __init__(self, attempt: Attempt, gpu: str) -> None:
        self.attempt = attempt
        self.gpu = gpu
        self.directory: AttemptDirectory | None = None
        self.started: Started | None = None
        self.ended: Ended | None = None
        self.over = asyncio.Event()
        """Set when it has ended."""
        self.job: ProtectedJob | None = None
        """Its pages in the run directory; None where it is not protected."""
        self.descent: Descent | None = None
        """Its stop, once there is one."""
        self.reported = False
        self.leaving = False
        """Its record is being dropped."""
        self.begun = asyncio.Event()
        """Set when there is a shim to signal, or there never will be one."""
        self._pidfd: int | None = None
        self.shim_pid: int | None = None
        self.saved_ns = 0
        self.asked_ns = 0
        self.ask_at = 0.0

    def watch(self, pid: int, process: ProcessRecord | None = None) -> bool:
        """Hold on to the shim; False when it, or a child of ours that is not reaped, is not there any more."""
        self.shim_pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        if process is None or alive(process):
            return True
        self.release()  # the number may be somebody else's by now
        return False

    def release(self) -> None:
        """Let go of the shim."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def send(self, number: signal.Signals) -> None:
        """Signal the shim, if it is there."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def shim_ended(self) -> None:
        """Wait until the shim has ended."""
        if self._pidfd is not None:
            await readable(self._pidfd)

    @property
    def local(self) -> LocalAttempt:
        """How the decisions see it."""
        if self.ended is not None:
            state = LocalState.ENDED
        elif self.descent is not None:
            state = LocalState.STOPPING
        else:
            state = LocalState.RUNNING if self.started is not None else LocalState.STARTING
        return LocalAttempt(state=state, gpu=self.gpu, reported=self.reported)


async def program_ended(pid: int) -> None:
    """Wait until a process has ended that we know to be there; at once if it is not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await readable(fd)
    finally:
        os.close(fd)


async def readable(fd: int) -> None:
    """Wait until there is something to read: for a pidfd the process's end, for our pipes the end of the other side."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
