"""A handle learns how its job ends: from live events, and by asking when they were missed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from muxflow.client import NoAnswer, NotFound, Rejected
from muxflow.client.errors import NotAllowed
from muxflow.client.event_feed import select
from muxflow.client.handle import JobHandle
from muxflow.contracts import (
    ExitStatus,
    GpuRequest,
    JobAccepted,
    JobFailed,
    JobFinished,
    JobRecord,
    JobRejected,
    JobReply,
    JobSpec,
    JobState,
    Role,
)

DEADLINE_S = 5.0
SPEC = JobSpec(name="job", tenant="default", command=("true",), gpu=GpuRequest(memory_bytes=1))
OTHER = JobSpec(name="job", tenant="default", command=("false",), gpu=GpuRequest(memory_bytes=1))
ACCEPTED = JobAccepted(tenant="default", job="job", submission_id="mine")
REJECTED = JobRejected(tenant="default", job="job", submission_id="mine", reason="taken", field="spec.command")
FINISHED = JobFinished(tenant="default", job="job", attempt=1, node="n", gpu="g")
FAILED = JobFailed(tenant="default", job="job", attempt=2, reason="exit code 3", exit=ExitStatus(code=3))


class Scheduler:
    """Answers what the test says, and counts how often it was asked."""

    def __init__(self, *answers: JobRecord | Exception) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self) -> JobReply:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return JobReply(record=answer)


def record(state: JobState, spec: JobSpec = SPEC, **fields: Any) -> JobRecord:
    return JobRecord(
        tenant="default", job="job", spec=spec, submission_id="another", submitted_ns=1, state=state, **fields
    )


def submitted(scheduler: Scheduler) -> JobHandle:
    return JobHandle("default", "job", ask=scheduler, submission_id="mine", spec=SPEC)


async def test_live_events_are_enough() -> None:
    scheduler = Scheduler(NotFound("no job"))
    handle = submitted(scheduler)
    handle.take(ACCEPTED)
    handle.take(FAILED)
    outcome = await asyncio.wait_for(handle.outcome(), DEADLINE_S)
    assert (outcome.state, outcome.attempt, outcome.exit) == (JobState.FAILED, 2, ExitStatus(code=3))
    assert scheduler.asked == 0


async def test_an_end_that_overtakes_the_acceptance_counts_once_that_is_there() -> None:
    handle = submitted(Scheduler(NotFound("no job")))
    handle.take(FINISHED)
    handle.take(ACCEPTED)
    assert (await asyncio.wait_for(handle.outcome(), DEADLINE_S)).succeeded


async def test_the_end_of_another_job_of_that_name_is_not_ours() -> None:
    handle = submitted(Scheduler(record(JobState.FINISHED, OTHER)))
    handle.take(FINISHED)
    handle.take(REJECTED)
    with pytest.raises(Rejected, match=r"spec\.command: taken"):
        await asyncio.wait_for(handle.outcome(), DEADLINE_S)


async def test_somebody_elses_verdict_is_not_ours() -> None:
    handle = submitted(Scheduler(NotFound("no job")))
    handle.take(JobAccepted(tenant="default", job="job", submission_id="theirs"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle.accepted(), 0.05)


async def test_an_outcome_that_was_missed_is_asked_for() -> None:
    ended = record(JobState.FAILED, attempt=4, reason="exit code 1", last_exit=ExitStatus(code=1))
    scheduler = Scheduler(NoAnswer("no leader"), NotFound("not yet"), record(JobState.RUNNING), ended)
    outcome = await asyncio.wait_for(submitted(scheduler).outcome(), DEADLINE_S)
    assert (outcome.state, outcome.attempt, outcome.reason) == (JobState.FAILED, 4, "exit code 1")
    assert scheduler.asked == 4


async def test_a_job_that_was_looked_up_has_an_outcome_too() -> None:
    handle = JobHandle("default", "job", ask=Scheduler(record(JobState.CANCELLED)))
    assert (await asyncio.wait_for(handle.outcome(), DEADLINE_S)).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("beginning", "kinds"),
    [
        ("alerts", {"alerts.eviction", "alerts.device", "alerts.online"}),
        ("jobs.finished", {"jobs.finished"}),
        ("muxflow.runs.exited.>", {"runs.exited"}),
        ("decisions.gpu-7.rack2", {"decisions"}),
    ],
)
def test_the_beginning_of_a_subject_selects_kinds(beginning: str, kinds: set[str]) -> None:
    assert {subject.name for subject, _ in select(beginning, Role.OPERATOR).subjects} == kinds


def test_names_in_a_subject_are_taken_plain_or_encoded() -> None:
    for beginning in ("jobs.finished.default.a", "muxflow.jobs.finished.default.a"):
        ((_, names),) = select(beginning, Role.OPERATOR).subjects
        assert names == {"tenant": "default", "job": "a"}
    ((_, names),) = select("nodes.state.gpu-7=2Erack2", Role.OPERATOR).subjects
    assert names == {"node": "gpu-7.rack2"}


def test_a_role_reads_what_it_may_and_is_told_what_it_may_not() -> None:
    assert {subject.name for subject, _ in select("", Role.USER).subjects} >= {"jobs.finished", "runs.started"}
    assert "decisions" not in {subject.name for subject, _ in select("", Role.USER).subjects}
    with pytest.raises(NotAllowed, match="role user"):
        select("alerts", Role.USER)
    with pytest.raises(NotFound, match="known are"):
        select("alert", Role.OPERATOR)
