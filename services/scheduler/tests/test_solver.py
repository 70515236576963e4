"""The solver process: it answers as the matching does, and its death or silence costs a repetition."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from muxflow_decisions.matching import (
    CertificateError,
    Matching,
    Need,
    Offer,
    OpenGpu,
    PlacedJob,
    Problem,
    WaitingJob,
)
from muxflow_decisions.matching.solve import solve
from muxflow_scheduler import solver as module
from muxflow_scheduler.solver import Solver, SolverError

GIB = 2**30
NEED = Need(GIB, (), "process")


def problem(jobs: int = 1) -> Problem:
    return Problem(
        waiting=tuple(WaitingJob(key=("t", f"j{number}"), need=NEED) for number in range(jobs)),
        gpus=tuple(
            OpenGpu(node="n", uuid=f"g{number}", offer=Offer("T4", 16 * GIB, ("process",))) for number in range(jobs)
        ),
    )


@contextlib.asynccontextmanager
async def running(deadline_s: float = 20.0, attempts: int = 3) -> AsyncIterator[Solver]:
    solver = Solver(deadline_s=deadline_s, attempts=attempts)
    try:
        yield solver
    finally:
        await solver.close()


def is_there(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_there(pid):
            await asyncio.sleep(0.01)


async def test_it_answers_what_the_matching_answers_and_says_how_long_it_took() -> None:
    async with running() as solver:
        assert solver.pid is None
        for jobs in (1, 3, 0):
            found = await solver.solve(problem(jobs))
            assert found.assignments == solve(problem(jobs)).assignments
            assert found.summary.solve_ms > 0
        assert solver.restarts == 0


async def test_a_process_that_cannot_be_started_is_tried_again_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, fails = asyncio.create_subprocess_exec, 1

    async def starting(*command: str, **options: Any) -> asyncio.subprocess.Process:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise BlockingIOError(11, "no process to be had")
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starting)
    async with running(attempts=2) as solver:
        assert (await solver.solve(problem())).assignments
        await solver.close()
        fails = 2
        with pytest.raises(SolverError, match="given up after 2 attempts"):
            await solver.solve(problem())


async def test_a_process_that_is_killed_is_started_anew_and_the_solve_repeated() -> None:
    async with running() as solver:
        await solver.start()
        assert solver.pid is not None
        os.kill(solver.pid, signal.SIGSTOP)
        solving = asyncio.ensure_future(solver.solve(problem()))
        await asyncio.sleep(0)
        os.kill(solver.pid, signal.SIGKILL)
        assert len((await solving).assignments) == 1
        assert solver.restarts == 1


async def test_one_that_has_died_between_two_solves_is_no_failure() -> None:
    async with running() as solver:
        await solver.start()
        assert solver.pid is not None
        os.kill(solver.pid, signal.SIGKILL)
        await gone(solver.pid)
        assert len((await solver.solve(problem())).assignments) == 1


async def test_a_process_that_hangs_is_killed_at_the_deadline() -> None:
    async with running(deadline_s=1.0) as solver:
        await solver.start()
        hung = solver.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        assert len((await solver.solve(problem())).assignments) == 1
        assert solver.restarts == 1
        assert not is_there(hung)


async def test_a_solve_that_is_never_done_in_time_is_given_up() -> None:
    async with running(deadline_s=0.001, attempts=2) as solver:
        with pytest.raises(SolverError, match="given up after 2 attempts"):
            await solver.solve(problem())
        assert solver.restarts == 2


async def test_a_solve_that_is_cancelled_does_not_answer_the_next_one() -> None:
    async with running() as solver:
        await solver.start()
        solving = asyncio.ensure_future(solver.solve(problem(2000)))
        await asyncio.sleep(0.005)
        solving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await solving
        assert len((await solver.solve(problem(3))).assignments) == 3


async def test_solves_that_are_asked_for_together_are_answered_each() -> None:
    async with running() as solver:
        found = await asyncio.gather(*(solver.solve(problem(jobs)) for jobs in range(1, 6)))
        assert [len(each.assignments) for each in found] == [1, 2, 3, 4, 5]


async def test_a_problem_that_contradicts_itself_is_refused_and_the_next_one_solved() -> None:
    there = tuple(PlacedJob(key=("t", name), need=NEED, gpu=("n", "g0")) for name in "ab")
    async with running() as solver:
        with pytest.raises(ValueError, match="placed twice"):
            await solver.solve(Problem(placed=there))
        assert len((await solver.solve(problem())).assignments) == 1
        assert solver.restarts == 0


@pytest.mark.parametrize(
    ("raised", "crosses_as"),
    [(CertificateError("a cheaper flow exists"), CertificateError), (KeyError("x"), SolverError)],
)
def test_an_error_of_the_matching_crosses_over(raised: Exception, crosses_as: type[Exception]) -> None:
    def fail(_: Problem) -> Matching:
        raise raised

    answer = module._answer(msgspec.msgpack.encode(problem()), fail)
    with pytest.raises(crosses_as, match=str(raised)):
        module._result(answer)


async def test_it_inherits_nothing_but_its_pipes() -> None:
    with socket.socket() as ours:
        ours.set_inheritable(True)
        inode = Path(f"/proc/self/fd/{ours.fileno()}").readlink()
        async with running() as solver:
            await solver.start()
            theirs = [link.readlink() for link in Path(f"/proc/{solver.pid}/fd").iterdir()]
            assert inode not in theirs


STARTER = """
import asyncio
from muxflow_scheduler.solver import Solver

async def main():
    solver = Solver()
    await solver.start()
    print(solver.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["idle", "in-the-middle"])
async def test_it_dies_with_the_process_that_started_it_whatever_it_does(stopped: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        starter.kill()
    await gone(pid)


async def test_signals_to_the_whole_group_are_for_the_scheduler_to_follow() -> None:
    async with running() as solver:
        await solver.start()
        assert solver.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(solver.pid, number)
        assert len((await solver.solve(problem())).assignments) == 1
        assert solver.restarts == 0


def test_the_scheduler_itself_loads_no_solver() -> None:
    loaded = "import muxflow_scheduler.solver, sys; print([n for n in ('numpy', 'ortools') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout == "[]\n"


@pytest.mark.bench
async def test_a_tiny_problem_takes_little_longer_than_in_this_process() -> None:
    async with running() as solver:
        await solver.start()
        extra_s = []
        for _ in range(30):
            begun = time.perf_counter()
            found = await solver.solve(problem())
            extra_s.append(time.perf_counter() - begun - found.summary.solve_ms / 1e3)
        assert sorted(extra_s)[len(extra_s) // 2] < 0.002
