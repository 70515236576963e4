from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from muxflow.contracts import Attempt
from muxflow_decisions.device import Gate, GateState, JobPhase
from muxflow_device.attribution.jobs import OfflineJob, OfflineJobs, job_memory_bytes, memory_bytes, residents_of
from muxflow_device.attribution.processes import Crowd, Process, Side
from muxflow_device.pages import JobControlWriter, JobLimits, JobOrder, JobPage, JobUsage, ProcessSlot
from muxflow_device.processes import owner_of
from muxflow_device.rundir import JobDirectory, RunDirectory

OURS, OTHER = "GPU-ours", "GPU-other"


@pytest.fixture
def run() -> Iterator[RunDirectory]:
    with tempfile.TemporaryDirectory(prefix="muxflow-test-", dir="/dev/shm") as directory:
        run = RunDirectory(Path(directory) / "run")
        run.prepare()
        yield run


@pytest.fixture
def jobs(run: RunDirectory) -> Iterator[OfflineJobs]:
    jobs = OfflineJobs(run, OURS)
    yield jobs
    jobs.close()


def begin(run: RunDirectory, job: str, gpu: str = OURS, *, page: bool = True) -> JobDirectory:
    """Make the directory of an attempt as the executor does."""
    directory = run.job(Attempt(tenant="default", job=job, attempt=1))
    order = JobOrder(gate=Gate(state=GateState.OPEN, budget_permille=1000), phase=JobPhase.RUN)
    JobControlWriter(directory, JobLimits(gpu=gpu, quota_bytes=None), order).close()
    if page:
        JobPage.create(directory, gpu=gpu)
    return directory


def names(jobs: OfflineJobs) -> list[str]:
    return sorted(job.name for job in jobs.look(time.time_ns()))


def test_jobs_of_this_gpu_come_and_go_and_those_of_others_are_none_of_ours(
    run: RunDirectory, jobs: OfflineJobs
) -> None:
    assert names(jobs) == []
    first, second = begin(run, "first"), begin(run, "second")
    begin(run, "elsewhere", OTHER)
    assert names(jobs) == [first.name, second.name]
    first.remove()
    assert names(jobs) == [second.name]


def test_a_job_that_comes_right_after_a_look_is_seen_by_the_next(run: RunDirectory, jobs: OfflineJobs) -> None:
    for number in range(50):  # within one tick of the clock that stamps directories
        begin(run, f"job-{number}")
        assert len(names(jobs)) == number + 1


def test_a_job_whose_page_is_not_there_yet_is_looked_for_again(run: RunDirectory, jobs: OfflineJobs) -> None:
    directory = begin(run, "late", page=False)
    assert names(jobs) == []
    JobPage.create(directory, gpu=OURS)
    assert names(jobs) == [directory.name]


def test_a_job_page_that_was_cut_counts_as_idle(run: RunDirectory, jobs: OfflineJobs) -> None:
    directory = begin(run, "cut")
    assert names(jobs) == [directory.name]
    os.truncate(directory.job_page, 100)
    (job,) = jobs.look(time.time_ns())
    assert (job.usage.busy_ns, job.usage.processes, job.pids) == (0, (), ())


def test_a_control_page_that_is_garbage_belongs_to_no_gpu(run: RunDirectory, jobs: OfflineJobs) -> None:
    directory = run.job(Attempt(tenant="default", job="garbage", attempt=1))
    directory.create()
    directory.control_page.write_bytes(b"x" * 4096)
    JobPage.create(directory, gpu=OURS)
    assert names(jobs) == []


def slot(pid: int, memory_bytes: int) -> ProcessSlot:
    counters = dict.fromkeys(("launches", "busy_ns", "throttled_ns", "frozen_ns", "refused_bytes", "inflight_ns"), 0)
    return ProcessSlot(
        pid=pid, owner=pid, inflight=0, drained=False, gate_epoch=0, memory_bytes=memory_bytes, **counters
    )


def test_a_jobs_memory_is_what_its_slots_say_or_nvml_if_that_is_more() -> None:
    def job(*processes: ProcessSlot) -> OfflineJob:
        usage = JobUsage(
            processes=processes, ended=(), launches=0, busy_ns=0, throttled_ns=0, frozen_ns=0, refused_bytes=0
        )
        return OfflineJob(name="a.b.1", usage=usage)

    first, second = job(slot(1, 100), slot(2, 10)), job(slot(3, 7))
    seen = [(1, Side.OFFLINE, 60), (2, Side.OFFLINE, 40), (3, Side.OFFLINE, None), (4, Side.ONLINE, 999)]
    crowd = Crowd(tuple(Process(pid=pid, name="p", side=side, memory_bytes=held) for pid, side, held in seen))
    assert [job_memory_bytes(each, crowd) for each in (first, second)] == [140, 7]
    assert [job_memory_bytes(each, None) for each in (first, second)] == [110, 7]
    assert memory_bytes([first, second], crowd) == 147


def resident(pid: int, job: str = "a.b.1") -> Process:
    return Process(pid=pid, name="p", side=Side.OFFLINE, memory_bytes=1, owner=owner_of(pid), job=job)


def held(job: OfflineJob, *pids: int) -> list[bool]:
    """Whether xCUDA is in these processes of the job, as far as is known."""
    return [each.held for each in residents_of(job, Crowd(tuple(resident(pid) for pid in pids)))]


def usage(*processes: ProcessSlot, problems: tuple[str, ...] = ()) -> OfflineJob:
    counters = dict.fromkeys(("launches", "busy_ns", "throttled_ns", "frozen_ns", "refused_bytes"), 0)
    return OfflineJob(name="a.b.1", usage=JobUsage(processes=processes, ended=(), problems=problems, **counters))


def test_a_process_of_a_job_without_a_slot_is_not_held_unless_nobody_can_tell() -> None:
    us, parent = os.getpid(), os.getppid()
    ours = msgspec.structs.replace(slot(us, 0), owner=owner_of(us))
    assert held(usage(ours), us, parent) == [True, False]
    assert held(usage(problems=("the page was cut",)), parent) == [True]
    full = [msgspec.structs.replace(ours, owner=owner) for owner in range(1, 65)]
    assert held(usage(*full), parent) == [True]


def test_a_process_whose_slot_has_the_name_of_its_own_pid_namespace_is_held() -> None:
    us = os.getpid()
    name = owner_of(us) >> 32 << 32 | 1
    inner = msgspec.structs.replace(resident(us), within=frozenset({name}))
    within = msgspec.structs.replace(slot(1, 0), owner=name)
    seems_ended = OfflineJob(name="a.b.1", usage=msgspec.structs.replace(usage().usage, ended=(within,)))
    for job in (seems_ended, usage(within)):
        assert [each.held for each in residents_of(job, Crowd((inner,)))] == [True]
        assert [each.held for each in residents_of(job, Crowd((resident(us),)))] == [False]


def test_a_process_that_has_ended_is_no_resident_though_nvml_lists_it() -> None:
    gone = Process(pid=2**22 + 1, name="p", side=Side.OFFLINE, memory_bytes=1, owner=2**40 + 2**22 + 1, job="a.b.1")
    assert residents_of(usage(), Crowd((gone,))) == ()


def test_nobody_is_a_resident_of_another_job() -> None:
    assert residents_of(usage(), Crowd((resident(os.getpid(), "a.c.1"),))) == ()
    assert residents_of(usage(), None) == ()


def test_a_node_without_a_run_directory_has_no_jobs(tmp_path: Path) -> None:
    assert OfflineJobs(RunDirectory(tmp_path / "none"), OURS).look(time.time_ns()) == ()
