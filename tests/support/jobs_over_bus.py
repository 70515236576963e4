"""Submitting jobs over the bus and waiting for what becomes of them: for tests of the scheduler."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from muxflow.bus import Bus, Message, QueryError
from muxflow.contracts import GpuRequest, JobQuery, JobRecord, JobReply, JobSpec, JobState, JobSubmit
from muxflow.contracts.catalogue import (
    JOBS_ACCEPTED,
    JOBS_CANCELLED,
    JOBS_FAILED,
    JOBS_FINISHED,
    JOBS_REJECTED,
    JOBS_SUBMIT,
    QUERY_JOB,
)

OUTCOMES = (JOBS_ACCEPTED, JOBS_REJECTED, JOBS_FINISHED, JOBS_FAILED, JOBS_CANCELLED)


class Outcomes:
    """Every outcome that was stored, in order, as an operator reads it."""

    def __init__(self) -> None:
        self.seen: list[Message[Any]] = []
        self._changed = asyncio.Condition()

    async def take(self, message: Message[Any]) -> None:
        async with self._changed:
            self.seen.append(message)
            self._changed.notify_all()

    async def of(self, job: str, what: str) -> Any:
        async with self._changed, asyncio.timeout(20):
            while True:
                for message in self.seen:
                    if message.names["job"] == job and message.subject.name == f"jobs.{what}":
                        return message.event
                await self._changed.wait()

    def count(self, job: str) -> Counter[str]:
        return Counter(message.subject.name for message in self.seen if message.names["job"] == job)


def spec(**changes: Any) -> JobSpec:
    return JobSpec(command=("true",), gpu=GpuRequest(memory_bytes=2**30), **changes)


async def submit(user: Bus, job: str, **changes: Any) -> None:
    await user.publish(JOBS_SUBMIT, JobSubmit(spec=spec(**changes)), tenant="default", job=job)


async def until(ask: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(20):
        while not good(answer := await ask()):
            await asyncio.sleep(0.05)
        return answer


async def status(bus: Bus, job: str) -> JobReply:
    reply: JobReply = await bus.request(QUERY_JOB, JobQuery(job=job), timeout_s=5, tenant="default")
    return reply


async def until_state(bus: Bus, job: str, state: JobState) -> JobRecord:
    async def ask() -> JobReply | None:
        try:
            return await status(bus, job)
        except QueryError:
            return None

    reply: JobReply = await until(ask, lambda reply: reply is not None and reply.record.state is state)
    return reply.record
