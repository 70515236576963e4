"""Settings of the monitor: section ``[monitor]``."""

from __future__ import annotations

import re
import socket
from typing import Annotated

import msgspec
from msgspec import Meta

from muxflow.settings import Settings
from muxflow_decisions.device import DevicePolicy
from muxflow_decisions.device.conduct import ConductPolicy


class OnlineWorkload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An online workload of this node: ``[monitor.online.<name>]``, and in ``<state_dir>/online.toml`` ``[<name>]``."""

    gpu: Annotated[str, Meta(min_length=1, max_length=128)] | Annotated[int, Meta(ge=0)]
    """UUID of its GPU, or NVML's index on this node. A GPU has one online workload."""
    match: Annotated[str, Meta(min_length=1, max_length=1024)]
    """Regular expression, searched in the command lines of the processes on the GPU."""
    latency_target_ms: Annotated[float, Meta(gt=0)] | None = None
    """Target of its p99 latency; null: only what its own reports say of one."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise ValueError(f"match: {self.match!r} is no regular expression: {error}") from None


class MonitorSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is the monitor's own."""

    node: Annotated[str, Meta(min_length=1, max_length=253)] = msgspec.field(default_factory=socket.gethostname)
    """Name of this node; default: its host name. One monitor may have it."""
    state_dir: Annotated[str, Meta(min_length=1)] = "/var/lib/muxflow/monitor"
    """Outbox, memory of the devices, ``online.toml``. On a local disk; used by one monitor."""
    run_dir: Annotated[str, Meta(min_length=1)] | None = None
    """Directory of the pages; null: ``$MUXFLOW_RUN_DIR``, else ``/run/muxflow`` or where a user has such."""
    period_ms: Annotated[int, Meta(ge=20, le=1000)] = 100
    """From one look at each GPU to the next."""
    stale_after_ms: Annotated[int, Meta(ge=100, le=60_000)] = 500
    """Without a look for this long, offline launches freeze. Five periods: a late look is common on a busy node."""
    beacon_holdoff_us: Annotated[int, Meta(ge=0, le=1_000_000)] = 500
    """No offline launch while an online process that carries the beacon is active, nor within this time of it; 0: the
    beacon is not obeyed."""
    tell_again_s: Annotated[float, Meta(ge=1, le=43_200)] = 21_600
    """A device's state that lasts is told again after this, with the same epoch: the bus forgets what is a week old."""
    policy: DevicePolicy = DevicePolicy()
    conduct: ConductPolicy = ConductPolicy()
    """When a job is stopped for what it does past xCUDA."""
    online: dict[str, OnlineWorkload] = {}
    """Online workloads by name; those of ``online.toml`` come beside them, and replace one of the same name."""

    def __post_init__(self) -> None:
        if self.stale_after_ms < 2 * self.period_ms:
            raise ValueError(
                f"stale_after_ms ({self.stale_after_ms}) must be at least twice period_ms ({self.period_ms}), "
                "or every late look freezes offline work"
            )


class MonitorSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the monitor reads."""

    monitor: MonitorSection = msgspec.field(default_factory=MonitorSection)
