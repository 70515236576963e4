"""One GPU's thread, with a driver that does what the simulated one cannot: it is reloaded, and single calls fail."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from muxflow.contracts import DeviceAlert, DeviceCondition, DeviceFault, DeviceState, Event, Gpu
from muxflow_decisions.device import FROZEN, DeviceMemory, DevicePolicy, Readings
from muxflow_decisions.device.conduct import ConductPolicy, JobSight, Resident
from muxflow_device.attribution.jobs import OfflineJob
from muxflow_device.attribution.processes import Crowd
from muxflow_device.nvml import VERSION_MISMATCH, NvmlUnavailable, Trouble
from muxflow_device.pages import DevicePage, DevicePageWriter, JobUsage
from muxflow_device.readings.reader import GpuAway
from muxflow_device.readings.rhythm import Rhythm
from muxflow_device.rundir import RunDirectory
from muxflow_monitor.conduct import Conduct
from muxflow_monitor.metrics import MonitorMetrics
from muxflow_monitor.observer import Observer, Sight
from muxflow_monitor.page import Page
from muxflow_monitor.watch import DeviceWatch

GPU = Gpu(uuid="GPU-1", kind="T4", memory_bytes=2**34)
POLICY = DevicePolicy(settle_s=0.1, readmit_s=0.2)


class Driver(Observer):
    """An idle GPU, behind a driver that is as the test wants it."""

    def __init__(self) -> None:
        self.away: GpuAway | None = None
        self.calls_failing: set[str] = set()
        self.throttle_reasons: int | None = 0
        self.hanging = threading.Event()
        self.hanging.set()
        self.renewals: list[int] = []
        self.renewal_fails: NvmlUnavailable | None = None
        self.jobs: tuple[OfflineJob, ...] = ()
        self.online_activity_pct = 0.0
        self.conduct: tuple[JobSight, ...] = ()

    # as an observer

    @property
    def failing(self) -> set[str]:
        return self.calls_failing

    def look(self) -> Sight:
        self.hanging.wait(20)
        if self.away is not None:
            raise self.away
        readings = Readings(
            now_ns=time.monotonic_ns(),
            memory_used_bytes=0,
            memory_total_bytes=2**34,
            online_activity_pct=self.online_activity_pct,
            online_present=False,
            throttle_reasons=self.throttle_reasons,
        )
        return Sight(readings=readings, crowd=Crowd(()), shared=False, jobs=self.jobs, conduct=self.conduct)

    def close(self) -> None:
        pass

    # as NVML

    def renew(self, seen: int) -> None:
        self.renewals.append(seen)
        if self.renewal_fails is not None:
            raise self.renewal_fails


class Bench:
    """The thread, its page, and what it told."""

    def __init__(self, run: RunDirectory, memory: DeviceMemory | None = None) -> None:
        self.driver = Driver()
        self.told: list[Event] = []
        self.failures: list[BaseException] = []
        self.found = 0
        directory = run.device(GPU.uuid)
        self.watch = DeviceWatch(
            GPU,
            node="n",
            nvml=self.driver,  # type: ignore[arg-type]  # renewed, and nothing else
            observer=self.driver,
            page=Page(lambda: DevicePageWriter(directory, uuid=GPU.uuid, stale_after_ms=300)),
            conduct=Conduct(directory, ConductPolicy()),
            rhythm=Rhythm(period_ms=20),
            policy=POLICY,
            tell_again_s=3600.0,
            memory=memory,
            metrics=MonitorMetrics(CollectorRegistry()).of(GPU.uuid),
            tell=self.told.append,
            on_found=self._count_found,
            on_failure=self.failures.append,
        )
        self.page = DevicePage(directory)
        self.watch.start()
        self.until(lambda: self.condition is DeviceCondition.HEALTHY, "Healthy")

    def _count_found(self) -> None:
        self.found += 1

    @property
    def condition(self) -> DeviceCondition | None:
        return self.page.look().condition

    @property
    def faults(self) -> list[DeviceFault]:
        return [event for event in self.told if isinstance(event, DeviceFault)]

    def until(self, look: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 15
        while not look():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.01)

    def looked(self, times: int) -> None:
        """Wait for as many whole looks."""
        for _ in range(times + 1):
            before_ns = self.watch.beat_ns
            self.until(lambda before_ns=before_ns: self.watch.beat_ns > before_ns, "a look")  # type: ignore[misc]

    def close(self) -> None:
        self.driver.hanging.set()
        self.watch.close()
        self.page.close()


@pytest.fixture
def run() -> Iterator[RunDirectory]:
    with tempfile.TemporaryDirectory(prefix="muxflow-test-", dir="/dev/shm") as directory:
        yield RunDirectory(Path(directory) / "run")


@pytest.fixture
def bench(run: RunDirectory) -> Iterator[Bench]:
    bench = Bench(run)
    yield bench
    bench.close()


def test_a_driver_that_is_reloaded_freezes_the_gpu_is_opened_anew_and_told_once(bench: Bench) -> None:
    bench.driver.away = GpuAway(Trouble.DRIVER, "Driver Not Loaded", 9, opening=1)
    bench.driver.renewal_fails = NvmlUnavailable("NVML cannot be used: Driver Not Loaded", 9)
    bench.until(lambda: bench.condition is DeviceCondition.OVERLIMIT, "Overlimit")
    bench.until(lambda: len(bench.driver.renewals) >= 2, "a second try")
    assert bench.page.look().fresh
    bench.driver.away = bench.driver.renewal_fails = None
    bench.until(lambda: bench.condition is DeviceCondition.HEALTHY, "Healthy again")
    assert [(fault.kind, fault.message) for fault in bench.faults] == [("nvml", "Driver Not Loaded")]
    assert bench.found == 1
    assert not bench.failures


def test_a_driver_of_another_version_ends_the_monitor(bench: Bench) -> None:
    bench.driver.renewal_fails = NvmlUnavailable("NVML cannot be used: version mismatch", VERSION_MISMATCH)
    bench.driver.away = GpuAway(Trouble.DRIVER, "Driver Not Loaded", 9, opening=1)
    bench.until(lambda: bench.failures, "the end of the thread")
    assert "version mismatch" in str(bench.failures[0])
    bench.until(lambda: not bench.page.look().fresh, "a stale page")


@pytest.mark.parametrize(
    ("trouble", "message", "code"),
    [
        (Trouble.LOST, "GPU is lost", 15),
        (Trouble.NOTHING, "Not Found", 6),
        (Trouble.FAILED, "Unknown Error", 999),
    ],
)
def test_a_gpu_that_is_away_alone_does_not_have_nvml_opened_anew_at_once(
    bench: Bench, trouble: Trouble, message: str, code: int
) -> None:
    bench.driver.away = GpuAway(trouble, message, code, opening=1)
    bench.until(lambda: bench.condition is DeviceCondition.OVERLIMIT, "Overlimit")
    assert bench.driver.renewals == []
    assert [fault.kind for fault in bench.faults] == ["nvml" if trouble is Trouble.FAILED else "lost"]


def test_a_slowdown_is_told_once_though_its_reasons_cannot_be_read_in_between(bench: Bench) -> None:
    for reasons in (0x40, None, 0x40):
        bench.driver.throttle_reasons = reasons
        bench.looked(2)
    assert [(fault.kind, fault.message) for fault in bench.faults] == [("clock", "hardware thermal slowdown")]
    bench.driver.throttle_reasons = 0
    bench.looked(2)
    bench.driver.throttle_reasons = 0x40
    bench.looked(2)
    assert len(bench.faults) == 2


def test_people_are_not_told_of_each_xid_of_a_storm_and_each_of_them_counts(bench: Bench) -> None:
    began = time.monotonic()
    for _ in range(500):
        bench.watch.report_xid(48)
    bench.until(lambda: bench.condition is DeviceCondition.OVERLIMIT, "Overlimit")
    bench.looked(1)
    most = 1 + int((time.monotonic() - began) / 10)
    alerts = [event for event in bench.told if isinstance(event, DeviceAlert)]
    assert 1 <= len(alerts) == len(bench.faults) <= most
    bench.until(lambda: bench.condition is DeviceCondition.HEALTHY, "Healthy when it is over")
    bench.watch.report_xid(48)
    bench.until(lambda: bench.condition is DeviceCondition.OVERLIMIT, "Overlimit again, also when nobody is told why")


def test_a_number_of_a_change_that_was_not_kept_is_not_given_again(run: RunDirectory) -> None:
    with DevicePageWriter(run.device(GPU.uuid), uuid=GPU.uuid, stale_after_ms=300) as before:
        before.store_gate(FROZEN, epoch=50)
    bench = Bench(run, DeviceMemory(condition=DeviceCondition.HEALTHY, epoch=47))
    bench.close()
    assert [event.epoch for event in bench.told if isinstance(event, DeviceState)] == [51, 52]


def test_a_call_that_fails_is_told_once_each_time_it_begins_to(bench: Bench) -> None:
    for number in (1, 2):
        bench.driver.calls_failing = {"power"}
        bench.looked(5)
        assert len(bench.faults) == number
        bench.driver.calls_failing = set()
        bench.looked(2)
    assert [(fault.kind, fault.message) for fault in bench.faults] == [("nvml", "no answer to power")] * 2
    assert bench.condition is DeviceCondition.HEALTHY


def test_a_driver_that_hangs_stops_the_heartbeat_and_the_state_stays(bench: Bench) -> None:
    bench.driver.hanging.clear()
    bench.until(lambda: not bench.page.look().fresh, "a stale page")
    bench.driver.hanging.set()
    bench.until(lambda: bench.page.look().fresh, "a heartbeat")
    assert [event.state for event in bench.told if isinstance(event, DeviceState)] == [
        DeviceCondition.INIT,
        DeviceCondition.HEALTHY,
    ]


def job(name: str, launches: int) -> OfflineJob:
    usage = JobUsage(processes=(), ended=(), launches=launches, busy_ns=0, throttled_ns=0, frozen_ns=0, refused_bytes=0)
    return OfflineJob(name=name, usage=usage)


def test_what_an_attempt_had_used_when_it_went_is_given_once(bench: Bench) -> None:
    def shown() -> dict[str, int]:
        return {each.name: each.usage.launches for each in bench.watch.view.jobs}

    bench.driver.jobs = (job("a.long.1", 5), job("a.short.1", 7))
    bench.until(lambda: shown() == {"a.long.1": 5, "a.short.1": 7}, "both")
    assert bench.watch.take_ended() == ()
    bench.driver.jobs = (job("a.long.1", 6),)
    bench.until(lambda: shown() == {"a.long.1": 6}, "the one that goes on")
    assert [(each.name, each.usage.launches) for each in bench.watch.take_ended()] == [("a.short.1", 7)]
    assert bench.watch.take_ended() == ()


def test_an_attempt_on_a_gpu_that_is_away_for_a_while_has_not_ended(bench: Bench) -> None:
    bench.driver.jobs = (job("a.long.1", 5),)
    bench.until(lambda: bench.watch.view.jobs, "the attempt")
    bench.driver.away = GpuAway(Trouble.LOST, "GPU is lost", 15, opening=1)
    bench.until(lambda: bench.condition is DeviceCondition.OVERLIMIT, "Overlimit")
    assert bench.watch.view.jobs == ()
    bench.driver.away = None
    bench.until(lambda: bench.watch.view.jobs, "the attempt again")
    assert bench.watch.take_ended() == ()


def test_what_a_job_does_unheld_is_not_forecast_as_the_online_sides(bench: Bench) -> None:
    """Else the next job got a share of the SMs as if the online side had been that busy."""
    bench.driver.online_activity_pct = 96.0  # the driver lists its process a moment later
    bench.until(lambda: bench.watch.view.peak_pct == 96.0, "a peak")
    loose = Resident(owner=1, pid=1, name="python3", held=False, memory_bytes=None)
    bench.driver.conduct = (JobSight(job="default.sheds.1", quota_bytes=None, residents=(loose,)),)
    bench.until(lambda: bench.watch.view.peak_pct != 96.0, "it is another's doing")
    bench.looked(2)
    bench.driver.conduct = ()  # its activity is still in what the meters show
    bench.looked(2)
    assert bench.watch.view.peak_pct in (None, 0.0)
