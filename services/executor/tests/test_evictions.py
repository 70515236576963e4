"""Orders of the evictor over the socket, carried out on real programs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executing_node import GPU, Node, until
from muxflow.contracts import Attempt, ExitStatus, RunEvicted, RunExited, RunStarted, StopCause
from muxflow_decisions.eviction import Step
from muxflow_device.eviction import (
    EvictDone,
    EvictEnd,
    EvictionServer,
    EvictOrder,
    EvictReply,
    EvictStep,
    OrderRefused,
    evict,
)
from muxflow_device.rundir import RunDirectory
from muxflow_executor.evictions import Evictions

UNKNOWN = Attempt(tenant="default", job="unknown", attempt=7)


@pytest.fixture
async def socket(node: Node, run: RunDirectory) -> AsyncIterator[Path]:
    def stop(attempt: Attempt, order: EvictOrder) -> None:
        node.runner.stop(attempt, StopCause.EVICTION, order.cause, hard=order.hard)

    server = EvictionServer(run.executor_socket, Evictions(node.store, node.runner, gpus=[GPU], stop=stop).carry_out)
    await server.open()
    yield run.executor_socket
    await server.close()


def ordered(*attempts: Attempt, gpu: str = GPU, hard: bool = False) -> EvictOrder:
    return EvictOrder(
        gpu=gpu, attempts=attempts or None, cause="online activity 97%", hard=hard, decided_ns=time.time_ns()
    )


async def carried_out(socket: Path, order: EvictOrder) -> list[EvictReply]:
    return [reply async for reply in evict(socket, order, answer_s=10)]


async def test_every_step_of_every_attempt_on_the_gpu_is_told(node: Node, socket: Path) -> None:
    slots = [node.start("sleep", "1000", job=job) for job in ("a", "b")]
    for slot in slots:
        await node.fact(RunStarted, slot.job)
    replies = await carried_out(socket, ordered())
    for slot in slots:
        mine = [reply for reply in replies if not isinstance(reply, EvictEnd) and reply.attempt == slot.key]
        assert [reply.step for reply in mine if isinstance(reply, EvictStep)] == [
            Step.FREEZE,
            Step.TERMINATE,
            Step.ENDED,
        ]
        done = mine[-1]
        assert isinstance(done, EvictDone)
        assert done.exit == ExitStatus(
            signal="SIGTERM", stopped_by=StopCause.EVICTION, stop_reason="online activity 97%"
        )
        assert done.total_ms is not None
        assert 0 < done.total_ms < 15_000
        assert (await node.fact(RunEvicted, slot.job)).reason == "online activity 97%"
    assert replies[-1] == EvictEnd(attempts=2)


async def test_order_for_an_empty_gpu_is_carried_out_at_once(socket: Path) -> None:
    assert await carried_out(socket, ordered()) == [EvictEnd(attempts=0)]


async def test_gpu_that_is_not_here_is_refused_by_name(node: Node, socket: Path) -> None:
    slot = node.start("sleep", "1000")
    await node.fact(RunStarted)
    with pytest.raises(OrderRefused, match="GPU-elsewhere"):
        await carried_out(socket, ordered(gpu="GPU-elsewhere"))
    assert node.runner.runs[slot.key].descent is None


async def test_order_joins_a_stop_that_is_under_way(node: Node, socket: Path) -> None:
    slot = node.start("sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.02; done', stop_grace_s=30)
    await until(lambda: node.output() == "ready\n")
    node.runner.stop(slot.key, StopCause.DECISION, "moved")
    replies = await carried_out(socket, ordered(hard=True))  # which leaves it no 30 seconds
    assert [reply.step for reply in replies if isinstance(reply, EvictStep)][:2] == [Step.FREEZE, Step.TERMINATE]
    exited = await node.fact(RunExited)
    assert (exited.exit.signal, exited.exit.stopped_by) == ("SIGKILL", StopCause.DECISION)


async def test_order_that_is_repeated_hears_the_past_steps_too(node: Node, socket: Path) -> None:
    node.start("sh", "-c", 'trap "echo asked" TERM; echo ready; while :; do sleep 0.02; done', stop_grace_s=1.0)
    await until(lambda: node.output() == "ready\n")
    first = evict(socket, ordered(), answer_s=10)
    assert isinstance(await anext(first), EvictStep)
    await until(lambda: "asked" in node.output())
    await first.aclose()  # as an evictor that is killed
    replies = await carried_out(socket, ordered())
    steps = [reply.step for reply in replies if isinstance(reply, EvictStep)]
    assert steps == [Step.FREEZE, Step.TERMINATE, Step.DISCONNECT, Step.KILL, Step.ENDED]


async def test_attempts_that_were_named_are_answered_for_whatever_became_of_them(node: Node, socket: Path) -> None:
    running = node.start("sleep", "1000", job="running")
    decided = time.time_ns()
    ended = node.start("sh", "-c", "exit 3", job="ended")
    await node.fact(RunExited, "ended")
    forgotten = node.start("sh", "-c", "exit 4", job="forgotten")
    await node.fact(RunExited, "forgotten")
    node.runner.forget(forgotten.key)
    await until(lambda: forgotten.key not in node.runner.runs)
    await node.fact(RunStarted, "running")
    order = EvictOrder(
        gpu=GPU,
        attempts=(running.key, ended.key, forgotten.key, UNKNOWN),
        cause="",
        decided_ns=time.time_ns(),
    )
    replies = await carried_out(socket, order)
    exits = {reply.attempt: reply.exit for reply in replies if isinstance(reply, EvictDone)}
    assert exits[running.key] == ExitStatus(signal="SIGTERM", stopped_by=StopCause.EVICTION)
    assert exits[ended.key] == ExitStatus(code=3)
    assert exits[UNKNOWN] is None
    assert replies[-1] == EvictEnd(attempts=4)
    before = EvictOrder(gpu=GPU, attempts=(forgotten.key,), cause="", decided_ns=decided)
    (done, _) = await carried_out(socket, before)
    assert isinstance(done, EvictDone)
    assert done.exit == ExitStatus(code=4)


async def test_attempt_that_began_after_the_decision_is_not_the_one_that_was_meant(node: Node, socket: Path) -> None:
    decided_ns = time.time_ns()
    slot = node.start("sleep", "1000")
    await node.fact(RunStarted)
    order = EvictOrder(gpu=GPU, attempts=(slot.key,), cause="", decided_ns=decided_ns)
    assert await carried_out(socket, order) == [EvictDone(attempt=slot.key), EvictEnd(attempts=1)]
    assert node.runner.runs[slot.key].descent is None
