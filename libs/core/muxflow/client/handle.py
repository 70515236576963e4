"""One job from its submitter's side: wait until it is accepted, wait until it has ended.

Outcomes arrive as live events. A live event can be missed (the job ended before we listened, the connection was away),
so whoever waits also asks the scheduler, at once and then ever more rarely.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from muxflow.client.errors import NoAnswer, NotFound, Rejected
from muxflow.contracts import (
    Event,
    ExitStatus,
    JobAccepted,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobRecord,
    JobRejected,
    JobReply,
    JobSpec,
    JobState,
)

_ASK_AFTER_S: Final = (0.25, 0.5, 1, 2, 4, 8)
_ASK_EVERY_S: Final = 10.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended."""

    tenant: str
    job: str
    state: JobState
    """``finished``, ``failed`` or ``cancelled``."""
    attempt: int
    """The last attempt; 0 if none was ever made."""
    reason: str = ""
    exit: ExitStatus | None = None
    """Of the last attempt, where it is known."""

    @property
    def succeeded(self) -> bool:
        """Whether the job ran to its end with exit code 0."""
        return self.state is JobState.FINISHED


class JobHandle:
    """A job that was submitted, cancelled or looked up through a client."""

    def __init__(
        self,
        tenant: str,
        job: str,
        *,
        ask: Callable[[], Awaitable[JobReply]],
        submission_id: str | None = None,
        spec: JobSpec | None = None,
    ) -> None:
        self.tenant = tenant
        self.job = job
        self.submission_id = submission_id
        """`id` of our submission (or cancellation); None for a job that was only looked up."""
        self._spec = spec
        self._ask = ask
        loop = asyncio.get_running_loop()
        self._verdict: asyncio.Future[JobRejected | None] = loop.create_future()
        self._end: asyncio.Future[Outcome | JobRejected] = loop.create_future()
        self._early: Event | None = None
        """An end that overtook the word that it is our job which ended."""
        if spec is None:
            self._verdict.set_result(None)

    @property
    def ended(self) -> bool:
        """Whether it is known how the job, or its submission, ended."""
        return self._end.done()

    async def accepted(self) -> None:
        """Wait until the scheduler has recorded the job. Raises `Rejected`."""
        await self._wait_for(self._verdict)
        if rejection := self._verdict.result():
            raise Rejected(rejection)

    async def outcome(self) -> Outcome:
        """Wait until the job has ended. Raises `Rejected`."""
        await self._wait_for(self._end)
        end = self._end.result()
        if isinstance(end, JobRejected):
            raise Rejected(end)
        return end

    async def status(self) -> JobReply:
        """Ask the scheduler about the job. Raises `NotFound` and `NoAnswer`."""
        return await self._ask()

    async def _wait_for(self, future: asyncio.Future[Any]) -> None:
        for delay_s in itertools.chain(_ASK_AFTER_S, itertools.repeat(_ASK_EVERY_S)):
            await asyncio.wait((future,), timeout=delay_s)
            if future.done():
                return
            try:
                reply = await self._ask()
            except (NoAnswer, NotFound):
                continue  # not yet, or no scheduler at present
            self._learn(reply.record)

    def take(self, event: Event) -> None:
        """Learn from a live event about this job."""
        match event:
            case JobAccepted() if event.submission_id == self.submission_id:
                self._accept()
            case JobRejected() if event.submission_id == self.submission_id:
                _settle(self._verdict, event)
                _settle(self._end, event)
            case JobFinished() | JobFailed() | JobCancelled() if not self._verdict.done():
                self._early = event
            case JobFinished():
                self._finish(JobState.FINISHED, event.attempt, exit_status=ExitStatus(code=0))
            case JobFailed():
                self._finish(JobState.FAILED, event.attempt, reason=event.reason, exit_status=event.exit)
            case JobCancelled():
                self._finish(JobState.CANCELLED, event.attempt, reason=event.reason)
            case _:
                pass

    def _learn(self, record: JobRecord) -> None:
        if self._spec is not None and record.spec != self._spec:
            return  # another job of that name: our rejection is on its way
        self._accept()
        if record.state.terminal:
            reason = "" if record.state is JobState.FINISHED else record.reason  # as the event would have told it
            self._finish(record.state, record.attempt, reason=reason, exit_status=record.last_exit)

    def _accept(self) -> None:
        _settle(self._verdict, None)
        if self._early is not None:
            self.take(self._early)

    def _finish(
        self, state: JobState, attempt: int, *, reason: str = "", exit_status: ExitStatus | None = None
    ) -> None:
        outcome = Outcome(
            tenant=self.tenant, job=self.job, state=state, attempt=attempt, reason=reason, exit=exit_status
        )
        _settle(self._end, outcome)


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)
