"""Where jobs are placed by predicted speeds, when they move, and what goes on while predictor or solver are away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from jobs_over_bus import Outcomes, status, submit, until, until_state
from muxflow.bus import Bus, Message, NoResponders
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    ALL_TENANTS,
    Checkpoint,
    DeviceCondition,
    GpuRequest,
    JobReply,
    JobSpec,
    JobState,
    JobSubmit,
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
from muxflow.contracts.catalogue import JOBS_SUBMIT, QUERY_QUEUE, QUERY_SPEEDS
from muxflow_decisions.matching import Move, Offer, OpenGpu
from muxflow_scheduler.placing import together
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
        self.of_memory: dict[int, dict[str, float]] = {}
        """By a job's memory, where it matters."""
        self.takes_s = 0.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.answered = asyncio.Event()

    async def answer(self, message: Message[SpeedsQuery]) -> SpeedsReply:
        self.asked += message.event.pairs
        await self.may_answer.wait()
        await asyncio.sleep(self.takes_s)
        self.answered.set()
        return SpeedsReply(speeds=tuple(map(self._speed, message.event.pairs)), generation=1)

    def _speed(self, pair: Pair) -> Speed:
        throughput = self.of_memory.get(pair.memory_bytes, self.throughput)[str(pair.workload)]
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


async def submit_large(user: Bus, job: str, memory_gib: int) -> None:
    """Submit a job that predictions tell apart from others by its memory."""
    large = JobSpec(
        command=("true",), gpu=GpuRequest(memory_bytes=memory_gib * 2**30), checkpoint=Checkpoint(), name=job
    )
    await user.publish(JOBS_SUBMIT, JobSubmit(spec=large), tenant="default", job=job)


async def test_a_job_that_has_left_first_waits_for_the_one_whose_gpu_it_gets(
    world: World, user: Bus, predictor: Predictor
) -> None:
    predictor.throughput = {"chat": 0.2, "search": 0.2, "mail": 0.2}
    predictor.of_memory = {
        2 * 2**30: {"chat": 0.05, "search": 0.5, "mail": 0.9},
        3 * 2**30: {"chat": 0.3, "search": 0.9, "mail": 0.1},
    }
    async with await world.connect(Principal(role=Role.NODE, bound_to=NODE)) as bus:
        node = ScriptedNode(bus, gpus=3, watched=True)
        await node.join()
        chat, search, mail = node.gpus
        for gpu, workload in zip(node.gpus, ("chat", "search", "mail"), strict=True):
            await node.serves(gpu, workload, 40.0)
        await node.becomes(search, HEALTHY)
        await submit_large(user, "ahead", 2)
        ahead = await started(node, user, "ahead")
        await node.becomes(chat, HEALTHY)
        await submit_large(user, "behind", 3)
        behind = await started(node, user, "behind")
        assert (ahead[0], behind[0]) == (search, chat)
        await node.becomes(mail, HEALTHY)
        await node.withdrawn("ahead")
        await node.withdrawn("behind")
        await node.exited(*behind, code=None, stopped_by=StopCause.DECISION)
        await submit(user, "other")
        assert (await node.slot("other"))[0] == chat
        waiting = (await status(user, "behind")).waiting
        assert waiting is not None
        assert "is reserved for it and not free yet" in waiting
        await node.exited(*ahead, code=None, stopped_by=StopCause.DECISION)
        assert (await node.slot("ahead", attempt=2))[0] == mail
        assert (await node.slot("behind", attempt=2))[0] == search
        await node.fall_silent()


def move(key: str, *, after: str | None = None) -> Move:
    target = OpenGpu(node=NODE, uuid=f"beyond {key}", offer=Offer("T4", 2**34, ("process",)))
    return Move(
        key=("t", key),
        source=(NODE, key),
        target=target,
        source_permille=1,
        target_permille=2,
        after=("t", after) if after else None,
    )


def test_a_job_does_not_move_to_a_gpu_that_nobody_leaves_after_all() -> None:
    first, second, third = move("a"), move("b", after="a"), move("c", after="b")
    circle = [move("d", after="e"), move("e", after="d")]
    assert together([first, second, third, *circle]) == [first, second, third, *circle]
    assert together([second, third, *circle]) == circle
    assert together([first, third, circle[0]]) == [first]


async def test_a_job_does_not_move_by_a_guess_while_the_answer_is_on_its_way(
    user: Bus, operator: Bus, watched: ScriptedNode, predictor: Predictor
) -> None:
    predictor.throughput = {"chat": 0.05, "search": 0.01}  # what is assumed is more
    chat, search = await serve(watched, second=UNHEALTHY)
    await submit(user, "x", checkpoint=Checkpoint())
    assert (await started(watched, user, "x"))[0] == chat
    await asyncio.wait_for(predictor.answered.wait(), 10)
    predictor.takes_s = 0.3
    await watched.becomes(search, HEALTHY)
    reply = await queue(operator, ALL_TENANTS, lambda reply: any(solve.gpus == 2 for solve in reply.solves))
    assert set(intervals(reply)) == {0}
    assert (await watched.slot("x"))[1].attempt == 1


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


async def test_a_solver_that_is_killed_in_a_solve_is_started_anew_and_the_solve_repeated(
    world: World, user: Bus, watched: ScriptedNode
) -> None:
    await serve(watched)
    await submit(user, "x")
    gpu, slot = await watched.slot("x")
    solver = world.services["scheduler"].child("muxflow_scheduler.solver")
    assert solver is not None
    os.kill(solver, signal.SIGSTOP)
    await submit(user, "y")
    await until_state(user, "y", JobState.PENDING)
    os.kill(solver, signal.SIGKILL)
    other, _ = await watched.slot("y")
    assert other != gpu
    assert world.services["scheduler"].child("muxflow_scheduler.solver") != solver
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
