"""Job control: what the executor orders is what a job reads."""

from __future__ import annotations

import pytest

from muxflow_decisions.device.gate import FROZEN, Gate, GateState, JobPhase
from muxflow_device.pages import JobControl, JobControlWriter, JobLimits, JobOrder, PageError
from muxflow_device.rundir import JobDirectory

OPEN = Gate(state=GateState.OPEN, budget_permille=800, window_us=2000)


def test_a_job_reads_what_the_executor_orders(job: JobDirectory, uuid: str) -> None:
    limits = JobLimits(gpu=uuid, quota_bytes=2**33, context_bytes=2**28)
    with JobControlWriter(job, limits, JobOrder(gate=OPEN, phase=JobPhase.RUN)) as writer:
        seen = JobControl.read(job.control_page)
        assert (seen.attempt, seen.limits) == ("default.train.1", limits)
        assert seen.order == writer.order == JobOrder(gate=OPEN, phase=JobPhase.RUN)
        trickle = Gate(state=GateState.TRICKLE, budget_permille=50, window_us=100)
        writer.store(trickle, JobPhase.CHECKPOINT, deadline_boottime_ns=123)
        seen = JobControl.read(job.control_page)
        assert seen.order == JobOrder(gate=trickle, phase=JobPhase.CHECKPOINT, deadline_boottime_ns=123, epoch=1)


def test_an_epoch_counts_changes_of_the_gates_state_alone(job: JobDirectory, uuid: str) -> None:
    with JobControlWriter(
        job, JobLimits(gpu=uuid, quota_bytes=None), JobOrder(gate=OPEN, phase=JobPhase.RUN)
    ) as writer:
        writer.store(Gate(state=GateState.OPEN, budget_permille=10), JobPhase.RUN)
        assert writer.order.epoch == 0
        writer.store(FROZEN, JobPhase.STOP)
        writer.store(FROZEN, JobPhase.STOP_HARD)
        assert writer.order.epoch == 1


def test_a_restarted_executor_takes_a_job_over_as_it_is(job: JobDirectory, uuid: str) -> None:
    limits = JobLimits(gpu=uuid, quota_bytes=None)
    with JobControlWriter(job, limits, JobOrder(gate=OPEN, phase=JobPhase.RUN)) as writer:
        writer.store(FROZEN, JobPhase.STOP, deadline_boottime_ns=9)
    with JobControlWriter(job, limits, JobOrder(gate=OPEN, phase=JobPhase.RUN)) as writer:
        assert writer.order == JobOrder(gate=FROZEN, phase=JobPhase.STOP, deadline_boottime_ns=9, epoch=1)


def test_a_control_that_is_none_is_said_to_be_none(job: JobDirectory) -> None:
    with pytest.raises(PageError, match="is not there"):
        JobControl.read(job.control_page)
    job.create()
    job.control_page.write_bytes(b"\0" * 4096)
    with pytest.raises(PageError, match="is no control page"):
        JobControl.read(job.control_page)
