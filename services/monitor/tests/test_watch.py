"""One GPU's thread, with a driver that does what the simulated one cannot: it is reloaded, and single calls fail."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from muxflow.contracts import DeviceCondition, DeviceFault, DeviceState, Event, Gpu
from muxflow_decisions.device import DevicePolicy, Readings
from muxflow_device.attribution.processes import Crowd
from muxflow_device.nvml import VERSION_MISMATCH, NvmlUnavailable, Trouble
from muxflow_device.pages import DevicePage, DevicePageWriter
from muxflow_device.readings.reader import GpuAway
from muxflow_device.readings.rhythm import Rhythm
from muxflow_device.rundir import RunDirectory
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
        self.hanging = threading.Event()
        self.hanging.set()
        self.renewals: list[int] = []
        self.renewal_fails: NvmlUnavailable | None = None

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
            online_activity_pct=0.0,
            online_present=False,
        )
        return Sight(readings=readings, crowd=Crowd(()), shared=False)

    def close(self) -> None:
        pass

    # as NVML

    def renew(self, seen: int) -> None:
        self.renewals.append(seen)
        if self.renewal_fails is not None:
            raise self.renewal_fails


class Bench:
    """The thread, its page, and what it told."""

    def __init__(self, run: RunDirectory) -> None:
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
            rhythm=Rhythm(period_ms=20),
            policy=POLICY,
            tell_again_s=3600.0,
            memory=None,
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
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="muxflow-test-", dir="/dev/shm") as directory:
        bench = Bench(RunDirectory(Path(directory) / "run"))
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


def test_a_lost_gpu_among_others_does_not_have_nvml_opened_anew_at_once(bench: Bench) -> None:
    bench.driver.away = GpuAway(Trouble.LOST, "GPU is lost", 15, opening=1)
    bench.until(lambda: bench.condition is DeviceCondition.OVERLIMIT, "Overlimit")
    assert bench.driver.renewals == []


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
