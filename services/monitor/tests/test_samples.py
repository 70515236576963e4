from __future__ import annotations

from muxflow_decisions.device import Readings
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_device.attribution.jobs import OfflineJob, job_memory_bytes
from muxflow_device.attribution.processes import Crowd, Process, Side
from muxflow_device.pages import JobUsage
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
