"""One look at a GPU, as values: what NVML said, with the time that each meter covers."""

from __future__ import annotations

import msgspec


class Share(msgspec.Struct, frozen=True):
    """How busy something was over an interval of CLOCK_MONOTONIC: NVML's meters cover up to a second of the past."""

    begin_ns: int
    end_ns: int
    part: float
    """0 to 1."""

    @property
    def pct(self) -> float:
        """0 to 100."""
        return 100.0 * self.part


class GpuProcess(msgspec.Struct, frozen=True):
    """A process with a context on the GPU."""

    pid: int
    memory_bytes: int | None
    """Null where the driver does not say."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Null is what this GPU never gives, or did not give this time."""

    time_ns: int
    """When it was taken, by CLOCK_MONOTONIC."""
    utilization: Share | None = None
    """Time in which any kernel ran, over NVML's newest sample period."""
    sm_activity: Share | None = None
    """Mean share of SMs with at least one warp, by GPM."""
    settling: bool = False
    """GPM will give SM activity, and has not had two samples yet."""
    sm_occupancy_pct: float | None = None
    memory_bandwidth_pct: float | None = None
    memory_used_bytes: int | None = None
    """Everything that is not free: the driver's reserve included."""
    memory_total_bytes: int | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    throttle_reasons: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    processes: tuple[GpuProcess, ...] | None = None
    """With a compute context, MPS clients and servers included."""
    shared: bool | None = None
    """Whether it has MPS clients."""
    process_utilization: dict[int, float] | None = None
    """Time in which each process ran kernels, 0 to 1, over the newest sample period; idle ones are not in it."""
