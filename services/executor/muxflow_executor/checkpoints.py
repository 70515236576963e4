"""Asking a job to save its state, and seeing when it has."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from muxflow.contracts import Checkpoint
from muxflow_executor.attempts import Started
from muxflow_executor.processes import handles, send, signal_number

_LOOK_S: Final = 0.02


def ask(checkpoint: Checkpoint, program: Started) -> bool:
    """Send the declared signal, if the main process handles it: else it would end the program. False if not sent."""
    number = signal_number(checkpoint.signal)
    return handles(program.pid, number) and send(program, number)


def saved_ns(mark: Path) -> int:
    """When the job last touched its mark; 0 if it never did."""
    try:
        return mark.stat().st_mtime_ns
    except OSError:
        return 0


async def until_saved(mark: Path, *, after_ns: int, grace_s: float, ended: asyncio.Event) -> int | None:
    """Wait until the mark is newer than `after_ns`; None when the grace passed or the program ended without."""
    deadline = time.monotonic() + grace_s
    while True:
        saved = saved_ns(mark)
        if saved > after_ns:
            return saved
        left_s = deadline - time.monotonic()
        if ended.is_set() or left_s <= 0:
            return None
        try:
            await asyncio.wait_for(ended.wait(), min(_LOOK_S, left_s))
        except TimeoutError:
            continue
