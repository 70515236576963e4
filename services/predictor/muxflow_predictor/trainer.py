"""Having a model trained: by a process of its own, which may be killed at any time."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import msgspec

from muxflow_predictor.orders import TrainingOrder, TrainingResult


class TrainingFailed(Exception):  # noqa: N818 - it reads as what the log is told
    """There is no new model. The message is one line that says why."""


async def trained(order: TrainingOrder, *, timeout_s: float) -> TrainingResult:
    """Have one model trained. Ends the process when cancelled. Raises `TrainingFailed`."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "muxflow_predictor.train",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:  # no memory, or no process, to be had for now
        raise TrainingFailed(f"the training process cannot be started: {error}") from None
    try:
        async with asyncio.timeout(timeout_s):
            output, errors = await process.communicate(msgspec.json.encode(order))
    except TimeoutError:
        raise TrainingFailed(f"not done within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        words = errors.decode(errors="replace").strip().splitlines() or ["no last words"]
        raise TrainingFailed(f"the training process ended with {process.returncode}: {words[-1]}")
    try:
        return msgspec.json.decode(output, type=TrainingResult)
    except msgspec.DecodeError as error:
        raise TrainingFailed(f"the training process wrote no result: {error}") from None
