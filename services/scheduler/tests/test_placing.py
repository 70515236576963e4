"""Where jobs are placed by predicted speeds, when they move, and what goes on while predictor or solver are away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from jobs_over_bus import Outcomes, status, submit, until, until_state
from muxflow.bus import Bus, Message, NoResponders
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    ALL_TENANTS,
    Checkpoint,
    DeviceCondition,
    JobReply,
    JobState,
    Pair,
    QueueQuery,
    QueueReply,
    Role,
    Slot,
    Speed,
    SpeedsQuery,
    SpeedsReply,
    StopCause,
)
from muxflow.contracts.catalogue import QUERY_QUEUE, QUERY_SPEEDS
from scripted_node import NODE, ScriptedNode
from world import World

HEALTHY, UNHEALTHY = DeviceCondition.HEALTHY, DeviceCondition.UNHEALTHY


@pytest.fixture
def env() -> dict[str, str]:
    return {
        "MUXFLOW_SCHEDULER__PROFILING": "false",
        "MUXFLOW_SCHEDULER__INTERVAL_S": "1",
        "MUXFLOW_SCHEDULER__SETTLE_S": "0",
        "MUXFLOW_SCHEDULER__SPEEDS_REFRESH_S": "0.3",
    }


class Predictor:
    """Answers as a predictor does, for each online workload the same."""

    def __init__(self) -> None:
        self.throughput = {"chat": 0.3, "search": 0.9}
        self.fits: dict[str | None, float] = {}
        self.asked: list[Pair] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.answered = asyncio.Event()

    async def answer(self, message: Message[SpeedsQuery]) -> SpeedsReply:
        self.asked += message.event.pairs
        await self.may_answer.wait()
        self.answered.set()
        return SpeedsReply(speeds=tuple(map(self._speed, message.event.pairs)), generation=1)

    def _speed(self, pair: Pair) -> Speed:
        throughput = self.throughput[str(pair.workload)]
        fits = self.fits.get(pair.workload, 1.0)
        return Speed(normalized_throughput=throughput, low=0, high=1, fits_probability=fits, basis="model")


@pytest.fixture
async def predictor(world: World) -> AsyncIterator[Predictor]:
    predictor = Predictor()
    async with await world.connect(Principal(role=Role.PREDICTOR)) as bus:
        await bus.serve("muxflow-predictor", "1.0.0", {QUERY_SPEEDS: predictor.answer})
        yield predictor
        predictor.may_answer.set()


async def serve(node: ScriptedNode, *, second: DeviceCondition = HEALTHY) -> tuple[str, str]:
    """Have chat on the first GPU, and search on the second; gives both."""
    chat, search = node.gpus
    await node.serves(chat, "chat", 40.0)
    await node.serves(search, "search", 40.0)
    await node.becomes(chat, HEALTHY)
    await node.becomes(search, second)
    return chat, search


async def started(node: ScriptedNode, user: Bus, job: str) -> tuple[str, Slot]:
    gpu, slot = await node.slot(job)
    await node.started(gpu, slot)
    await until_state(user, job, JobState.RUNNING)
    return gpu, slot


async def queue(bus: Bus, tenant: str, good: Callable[[QueueReply], bool]) -> QueueReply:
    async def ask() -> QueueReply | None:
        try:
            reply: QueueReply = await bus.request(QUERY_QUEUE, QueueQuery(), timeout_s=5, tenant=tenant)
        except NoResponders:
            return None
        return reply

    found: QueueReply = await until(ask, lambda reply: reply is not None and good(reply))
    return found


def intervals(reply: QueueReply) -> list[int]:
    """Moves of each solve for everything."""
    return [solve.moved for solve in reply.solves if solve.trigger == "interval"]


async def test_a_job_is_placed_where_it_is_predicted_to_be_fastest(
    user: Bus, watched: ScriptedNode, predictor: Predictor
) -> None:
    _, search = await serve(watched)
    await submit(user, "first")  # its question may be answered too late for itself
    gpu, slot = await watched.slot("first")
    await asyncio.wait_for(predictor.answered.wait(), 10)
    await watched.exited(gpu, slot)
    await watched.withdrawn("first")
    await submit(user, "x")
    gpu, slot = await watched.slot("x")
    assert gpu == search
    assert (predictor.asked[0].gpu_kind, predictor.asked[0].sm_share_pct) == ("T4", 50)
    reply = await status(user, "x")
    assert reply.speed is not None
    assert (reply.speed.normalized_throughput, reply.speed.basis) == (0.9, "model")
    assert [(each.workload, each.gpus, each.free) for each in reply.options] == [("chat", 1, 1), ("search", 1, 0)]


async def test_a_running_job_moves_to_a_better_gpu_which_is_kept_for_it(
    user: Bus, operator: Bus, watched: ScriptedNode, predictor: Predictor, outcomes: Outcomes
) -> None:
    chat, search = await serve(watched, second=UNHEALTHY)
    await submit(user, "x", checkpoint=Checkpoint())
    gpu, slot = await started(watched, user, "x")
    assert gpu == chat
    await watched.becomes(search, HEALTHY)
    await watched.withdrawn("x")
    await submit(user, "urgent", priority=9)
    reply = await until(
        lambda: status(user, "urgent"), lambda reply: reply.waiting and "reserved for default/x" in reply.waiting
    )
    assert "1 is busy" in reply.waiting
    await watched.exited(gpu, slot, code=None, stopped_by=StopCause.DECISION)
    assert (await watched.slot("x", attempt=2))[0] == search
    assert (await watched.slot("urgent"))[0] == chat
    record = (await status(user, "x")).record
    assert any(
        f"moves to GPU {search} of {NODE}: predicted 0.90 there, 0.30 here" in step.detail for step in record.story
    )
    assert 1 in intervals(await queue(operator, ALL_TENANTS, bool))


async def test_a_move_that_gains_less_than_it_costs_is_not_made(
    user: Bus, operator: Bus, watched: ScriptedNode, predictor: Predictor
) -> None:
    predictor.throughput = {"chat": 0.85, "search": 0.9}
    chat, search = await serve(watched, second=UNHEALTHY)
    await submit(user, "x")  # it has no checkpoint: it would begin anew
    await started(watched, user, "x")
    await watched.becomes(search, HEALTHY)
    reply = await queue(operator, ALL_TENANTS, lambda reply: len(intervals(reply)) >= 2)
    assert set(intervals(reply)) == {0}
    assert {solve.cost - solve.bound for solve in reply.solves} == {0}
    assert (await watched.slot("x"))[0] == chat


async def test_a_gpu_where_a_job_is_predicted_not_to_fit_is_not_used_for_it(
    user: Bus, watched: ScriptedNode, predictor: Predictor
) -> None:
    predictor.throughput = {"chat": 0.5, "search": 0.5}
    await serve(watched)
    await submit(user, "first")
    gpu, slot = await started(watched, user, "first")
    await asyncio.wait_for(predictor.answered.wait(), 10)
    predictor.fits = {"chat": 0.1, "search": 0.31}
    known = len(predictor.asked)
    await until(lambda: _asked_again(predictor, known), bool)  # each interval refreshes what is known
    await watched.exited(gpu, slot)
    await watched.withdrawn("first")
    await submit(user, "x")
    reply: JobReply = await until(
        lambda: _status_or_none(user, "x"), lambda reply: reply and reply.waiting and "not to fit" in reply.waiting
    )
    assert {each.note for each in reply.options} == {
        "predicted not to fit: 10%, and 80% is asked for",
        "predicted not to fit: 31%, and 80% is asked for",
    }


async def _asked_again(predictor: Predictor, known: int) -> bool:
    return len(predictor.asked) >= known + 4


async def _status_or_none(user: Bus, job: str) -> JobReply | None:
    try:
        return await status(user, job)
    except Exception:  # noqa: BLE001 - it is not recorded yet
        return None


async def test_no_job_waits_for_a_predictor_that_says_nothing(
    user: Bus, watched: ScriptedNode, predictor: Predictor, outcomes: Outcomes
) -> None:
    predictor.may_answer.clear()
    await serve(watched)
    await submit(user, "x")
    gpu, slot = await watched.slot("x")
    assert not predictor.answered.is_set()
    reply = await status(user, "x")
    assert reply.speed is not None
    assert reply.speed.basis == "assumed"
    await watched.exited(gpu, slot)
    await outcomes.of("x", "finished")


async def test_without_a_predictor_jobs_are_placed(user: Bus, watched: ScriptedNode) -> None:
    await serve(watched)
    await submit(user, "x")
    await watched.slot("x")


def solver_of(scheduler: int) -> int:
    """Process id of the solver of a scheduler."""
    for children in Path(f"/proc/{scheduler}/task").glob("*/children"):
        for pid in children.read_text().split():
            if b"muxflow_scheduler.solver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
    raise LookupError


async def test_a_solver_that_is_killed_in_a_solve_is_started_anew_and_the_solve_repeated(
    world: World, user: Bus, watched: ScriptedNode
) -> None:
    await serve(watched)
    await submit(user, "x")
    gpu, slot = await watched.slot("x")
    solver = solver_of(world.services["scheduler"].pid)
    os.kill(solver, signal.SIGSTOP)
    await submit(user, "y")
    await until_state(user, "y", JobState.PENDING)
    os.kill(solver, signal.SIGKILL)
    other, _ = await watched.slot("y")
    assert other != gpu
    assert solver_of(world.services["scheduler"].pid) != solver
    await watched.exited(gpu, slot)


async def test_the_queue_is_listed_in_its_order_and_solves_are_for_operators(
    user: Bus, operator: Bus, watched: ScriptedNode
) -> None:
    await submit(user, "old")
    await submit(user, "young")
    await submit(user, "urgent", priority=5)
    reply = await queue(user, "default", lambda reply: reply.total == 3)
    assert [(each.job, each.position, each.priority) for each in reply.jobs] == [
        ("urgent", 0, 5),
        ("old", 1, 0),
        ("young", 2, 0),
    ]
    assert "not told of by a monitor yet" in reply.jobs[0].waiting
    assert reply.solves == ()
    await serve(watched)
    reply = await queue(operator, ALL_TENANTS, lambda reply: reply.total == 1)
    assert [each.job for each in reply.jobs] == ["young"]
    placed = [solve for solve in reply.solves if solve.placed]
    assert sum(solve.placed for solve in placed) == 2
    assert all(solve.cost == solve.bound and solve.solve_ms > 0 for solve in placed)
