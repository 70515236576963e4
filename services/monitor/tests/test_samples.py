from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from muxflow.contracts import Attempt, NodeTelemetry, decode, encode
from muxflow_decisions.device import Readings
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_device.attribution.jobs import OfflineJob, job_memory_bytes, memory_bytes, worst_inflation
from muxflow_device.attribution.processes import Crowd, Process, Side
from muxflow_device.pages import JobPage, JobUsage
from muxflow_device.pages.layout import RawJobPage
from muxflow_device.processes import owner_of
from muxflow_device.rundir import RunDirectory
from muxflow_monitor.samples import sample_of, with_offline


def test_what_offline_kernels_suffer_is_told() -> None:
    sample = sample_of("GPU-1", Readings(now_ns=1, inflation_permille=1500), DeviceMemory())
    assert (sample.offline_inflation, sample.offline_busy_permille) == (1.5, None)


def test_the_memory_of_a_process_without_xcuda_is_told_with_its_attempt() -> None:
    usage = JobUsage(processes=(), ended=(), launches=0, busy_ns=0, throttled_ns=0, frozen_ns=0, refused_bytes=0)
    job = OfflineJob(name="default.train.1", usage=usage)
    loose = Process(pid=7, name="p", side=Side.OFFLINE, memory_bytes=2**30, owner=7, job="default.train.1")
    other = Process(pid=8, name="p", side=Side.OFFLINE, memory_bytes=2**30, owner=8, job="default.other.1")
    crowd = Crowd((loose, other))
    assert job_memory_bytes(job, crowd) == 2**30
    told = with_offline(sample_of("GPU-1", Readings(now_ns=1), DeviceMemory()), [job], [], crowd, taken_ns=1)
    assert [(usage.job, usage.memory_bytes) for usage in told.offline] == [("train", 2**30)]


@given(raw=st.lists(st.binary(min_size=248, max_size=248), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
@example(raw=[b"\xff" * 248] * 3)
def test_telemetry_of_a_job_that_writes_anything_into_its_page_can_be_read(raw: list[bytes]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        directory = RunDirectory(Path(path) / "run").job(Attempt(tenant="default", job="train", attempt=1))
        JobPage.create(directory, gpu="GPU-1")
        with directory.job_page.open("r+b") as file:
            file.seek(RawJobPage.slots.offset)
            for owner, rest in zip((owner_of(os.getpid()), owner_of(1), 2**40 + 1), raw, strict=True):
                file.write(owner.to_bytes(8, "little") + rest)
        with JobPage(directory) as page:
            job = OfflineJob(name=directory.name, usage=page.read())
    readings = Readings(
        now_ns=1, inflation_permille=worst_inflation([job]), offline_memory_bytes=memory_bytes([job], None)
    )
    sample = with_offline(sample_of("GPU-1", readings, DeviceMemory()), [job], [], None, taken_ns=1)
    told = NodeTelemetry(node="a", gpus=(sample,))
    assert decode(encode(told), NodeTelemetry) == told
