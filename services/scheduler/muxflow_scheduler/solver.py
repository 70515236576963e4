"""The matching in a process of its own, so that a solve of seconds delays neither leases nor jobs.

The process is started when it is first needed and sees nothing but problems: it inherits no connection, and it dies
with this one. What is killed or hangs is started anew, and the solve repeated.

On the pipe: 8 bytes with the length, most significant first, and so much MessagePack. One problem down, one reply up.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
import traceback
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from typing import BinaryIO, Final

import msgspec
import structlog
from msgspec.structs import replace

from muxflow_decisions.matching import CertificateError, Matching, Problem

log = structlog.get_logger()

_LENGTH_BYTES: Final = 8
_START_S: Final = 60.0
"""For a busy machine: the libraries are large."""
_PR_SET_PDEATHSIG: Final = 1


class SolverError(Exception):
    """There is no solution, and it is not the problem's fault. Says why in words."""


class _Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The solver cannot prove its solution, or the problem contradicts itself."""

    certificate: bool
    reason: str


class _Broken(msgspec.Struct, frozen=True, tag="broken"):
    """An error that nobody thought of; the traceback is on standard error."""

    reason: str


class _Solved(msgspec.Struct, frozen=True, tag="solved"):
    matching: Matching


_Reply = _Refused | _Broken | _Solved
_REPLIES: Final = msgspec.msgpack.Decoder(_Reply)


class Solver:
    """Solves one problem after the other in a process of its own.

    A solve that takes longer than `deadline_s`, or whose process dies, is repeated in a new process; after `attempts`
    it is given up.
    """

    def __init__(self, *, deadline_s: float = 30.0, attempts: int = 3) -> None:
        self._deadline_s = deadline_s
        self._attempts = attempts
        self._process: Process | None = None
        self._turn = asyncio.Lock()
        self.restarts = 0
        """Processes that died or were killed for being late."""

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Have the process ready before it is needed: loading the libraries takes some tenths of a second."""
        async with self._turn:
            await self._attempt(b"")

    async def solve(self, problem: Problem) -> Matching:
        """Solve in the order in which it is called; `summary.solve_ms` is the time in the process.

        Raises CertificateError and ValueError as `solve` of the matching does, SolverError when it is given up.
        """
        request = msgspec.msgpack.encode(problem)
        async with self._turn:
            for _ in range(self._attempts):
                answer = await self._attempt(request)
                if answer is not None:
                    return _result(answer)
        raise SolverError(f"given up after {self._attempts} attempts of at most {self._deadline_s:g} s")

    async def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _attempt(self, request: bytes) -> bytes | None:
        """Give the reply to a request; None if the process has died, or was killed because it is late."""
        try:
            process = await self._ready()
            async with asyncio.timeout(self._deadline_s):
                return await _ask(process, request)
        except TimeoutError:
            reason = "it is late"
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError):
            reason = "it has died"
        except OSError as error:  # no memory, or no process, to be had for now
            reason = f"it cannot be started: {error}"
        except BaseException:  # cancelled: what it would still say belongs to no request
            await self.close()
            raise
        await self.close()
        self.restarts += 1
        log.warning("solver starts anew", reason=reason)
        return None

    async def _ready(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__, str(os.getpid()), stdin=PIPE, stdout=PIPE
            )
            async with asyncio.timeout(_START_S):
                await _ask(self._process, b"")
        return self._process


async def _ask(process: Process, request: bytes) -> bytes:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("it was started with pipes")
    process.stdin.write(len(request).to_bytes(_LENGTH_BYTES))
    process.stdin.write(request)
    await process.stdin.drain()
    length = int.from_bytes(await process.stdout.readexactly(_LENGTH_BYTES))
    return await process.stdout.readexactly(length)


def _result(answer: bytes) -> Matching:
    reply: _Reply = _REPLIES.decode(answer)
    match reply:
        case _Solved():
            return reply.matching
        case _Refused(certificate=True):
            raise CertificateError(reply.reason)
        case _Refused():
            raise ValueError(reply.reason)
        case _Broken():
            raise SolverError(reply.reason)


# ---------------------------------------------------------------- in the process


def main(parent: int) -> None:
    """Answer problems on standard input until it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group of processes: the scheduler ends this one
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer

    from muxflow_decisions.matching import solve  # noqa: PLC0415 - the scheduler itself loads no solver

    solver = solve.Solver()
    gc.freeze()
    gc.disable()  # a solve makes many small objects and no circles; between solves there is time
    while (request := _read(sys.stdin.buffer)) is not None:
        answer = _answer(request, solver.solve) if request else b""
        answers.write(len(answer).to_bytes(_LENGTH_BYTES) + answer)
        answers.flush()
        gc.collect()


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH_BYTES)
    return stream.read(int.from_bytes(head)) if len(head) == _LENGTH_BYTES else None


def _answer(request: bytes, solve: Callable[[Problem], Matching]) -> bytes:
    reply: _Reply
    try:
        problem = msgspec.msgpack.decode(request, type=Problem)
        begun_s = time.perf_counter()
        matching = solve(problem)
        took_ms = (time.perf_counter() - begun_s) * 1e3
        reply = _Solved(replace(matching, summary=replace(matching.summary, solve_ms=took_ms)))
    except CertificateError as error:
        reply = _Refused(certificate=True, reason=str(error))
    except ValueError as error:
        reply = _Refused(certificate=False, reason=str(error))
    except Exception as error:  # noqa: BLE001 - told to the scheduler, which goes on
        traceback.print_exc()
        reply = _Broken(f"{type(error).__name__}: {error}")
    return msgspec.msgpack.encode(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]))
