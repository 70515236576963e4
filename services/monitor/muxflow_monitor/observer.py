"""One look at one GPU: what NVML, the job pages and the beacon say together."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import structlog

from muxflow_decisions.device import Readings
from muxflow_decisions.device.conduct import JobSight
from muxflow_device.attribution.busy import BusyMeter
from muxflow_device.attribution.jobs import OfflineJob, OfflineJobs, memory_bytes, residents_of, worst_inflation
from muxflow_device.attribution.online import OnlineMeter
from muxflow_device.attribution.processes import Crowd, ProcessTable, Side
from muxflow_device.nvml import Nvml
from muxflow_device.pages import Beacons, BeaconView
from muxflow_device.processes import lives, owner_of
from muxflow_device.readings.look import GpuProcess, Look
from muxflow_device.readings.reader import GpuReader
from muxflow_device.rundir import RunDirectory
from muxflow_monitor.workloads import Workload

log = structlog.get_logger()


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen at one look."""

    readings: Readings
    crowd: Crowd | None
    """Who has a context on the GPU; null where the driver does not say."""
    shared: bool | None
    """Whether the GPU has MPS clients."""
    jobs: tuple[OfflineJob, ...] = ()
    """Attempts on the GPU, with what their pages say."""
    conduct: tuple[JobSight, ...] = ()
    """The same, with their processes as the driver tells of them."""


class Observer:
    """The eyes of one GPU's thread. `slo_ratio` gives a workload's latency over its target; `beacon_obeyed`: offline
    gates have a hold-off.
    """

    def __init__(
        self,
        nvml: Nvml,
        run: RunDirectory,
        uuid: str,
        *,
        slo_ratio: Callable[[str], float | None],
        beacon_obeyed: bool,
    ) -> None:
        """Make and open what it looks at. Raises OSError."""
        self._directory = run.device(uuid)
        self._reader = GpuReader(nvml, uuid)
        self._jobs = OfflineJobs(run, uuid)
        self._directory.create_beacons()
        self._beacons = Beacons(self._directory)
        self._beacon_obeyed = beacon_obeyed
        self._beacon_problem: str | None = None
        self._slo_ratio = slo_ratio
        self._busy = BusyMeter()
        self._online = OnlineMeter()
        self._workload: Workload | None = None
        self._table = ProcessTable(self._is_online)
        self._listed: tuple[GpuProcess, ...] | None = None
        self._crowd: Crowd | None = None
        self._pids: tuple[int, ...] = ()

    def declare(self, workload: Workload | None) -> None:
        """Say which online workload the GPU has."""
        self._workload = workload
        self._table.forget()
        self._listed = None

    def look(self) -> Sight:
        """Take one look. Raises `GpuAway`."""
        jobs = self._jobs.look(time.time_ns())
        look = self._reader.look(by_process=bool(jobs))
        self._busy.take(time.monotonic_ns(), jobs)
        pids = tuple(pid for job in jobs for pid in job.pids)
        self._sort(look, pids)
        beacon = self._look_at_beacons()
        beacons = self._all_carry(beacon)
        activity_pct = self._online.estimate_pct(look, self._busy, self._crowd, apart=beacons is True)
        readings = Readings(
            now_ns=look.time_ns,
            utilization_pct=look.utilization.pct if look.utilization else None,
            sm_activity_pct=look.sm_activity.pct if look.sm_activity else None,
            sm_occupancy_pct=look.sm_occupancy_pct,
            memory_bandwidth_pct=look.memory_bandwidth_pct,
            memory_used_bytes=look.memory_used_bytes,
            memory_total_bytes=look.memory_total_bytes,
            sm_clock_mhz=look.sm_clock_mhz,
            sm_clock_max_mhz=look.sm_clock_max_mhz,
            throttle_reasons=look.throttle_reasons,
            power_w=look.power_w,
            temperature_c=look.temperature_c,
            offline_memory_bytes=memory_bytes(jobs, self._crowd),
            offline_busy_permille=round(1000 * self._busy.newest()),
            inflation_permille=worst_inflation(jobs),
            online_present=self._online_present(beacon),
            online_activity_pct=activity_pct,
            online_last_launch_age_us=_age_us(look, beacon),
            online_beacons=beacons,
            slo_ratio=self._slo_ratio(self._workload.name) if self._workload is not None else None,
        )
        conduct = tuple(
            JobSight(job=job.name, quota_bytes=job.quota_bytes, residents=residents_of(job, self._crowd))
            for job in jobs
        )
        return Sight(readings=readings, crowd=self._crowd, shared=look.shared, jobs=jobs, conduct=conduct)

    @property
    def failing(self) -> set[str]:
        """Names of the calls that NVML should answer, and did not the last time."""
        return self._reader.failing

    def capabilities(self) -> dict[str, bool]:
        """Tell what this GPU gives, of all that has been asked so far."""
        return self._reader.capabilities()

    def close(self) -> None:
        """Let everything go."""
        self._reader.close()
        self._jobs.close()
        self._beacons.close()

    def _look_at_beacons(self) -> BeaconView:
        """See what online processes say. A directory that is gone is made anew: they look for it once a second."""
        view = self._beacons.read()
        if view.problem is None:
            return view
        try:
            self._directory.create_beacons()
        except OSError as error:
            if view.problem != self._beacon_problem:
                log.warning("nobody can tell of launches", problem=view.problem, error=str(error))
        else:
            log.warning("the directory of beacon pages is made anew", problem=view.problem)
        self._beacon_problem = view.problem
        return view

    def _is_online(self, command_line: str) -> bool:
        return self._workload is not None and self._workload.is_its(command_line)

    def _sort(self, look: Look, pids: tuple[int, ...]) -> None:
        """Sort the processes when their list is a new one, or when other ones have slots."""
        if look.processes is self._listed and pids == self._pids:
            return
        self._listed, self._pids = look.processes, pids
        self._crowd = self._table.sort(look.processes, offline=pids) if look.processes is not None else None

    def _online_present(self, beacon: BeaconView) -> bool | None:
        if beacon.pids:
            return True
        if self._crowd is None:
            return True if self._workload is not None else None
        if self._crowd.on(Side.ONLINE, Side.UNKNOWN):
            return True
        return False if self._crowd.complete else None

    def _all_carry(self, beacon: BeaconView) -> bool | None:
        """Whether each online process tells of its launches. One that has told of none may make them past us."""
        if self._crowd is None or not self._crowd.complete:
            return None
        online = {process.pid for process in self._crowd.others}
        silent = online - beacon.pids
        return self._beacon_obeyed and bool(online) and not any(_runs(pid) for pid in silent)


def _runs(pid: int) -> bool:
    """Whether a process is still there: the driver lists those that have ended for a moment more."""
    return lives(owner_of(pid))


def _age_us(look: Look, beacon: BeaconView) -> int | None:
    launched_ns = beacon.last_launch_monotonic_ns
    return max(0, look.time_ns - launched_ns) // 1000 if launched_ns is not None else None
