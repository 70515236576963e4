"""Nodes, their GPUs and the online workloads on them."""

from __future__ import annotations

import msgspec

from muxflow.contracts.event import Bytes, Count, Event, Milliseconds, Percent, TimeNs


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU in a node's inventory."""

    uuid: str
    kind: str
    """Model family, such as ``T4`` or ``A100``."""
    memory_bytes: Bytes
    """Total device memory."""
    index: Count = 0
    """NVML's index on that node; may change at a reboot."""


class NodeState(Event, frozen=True, kw_only=True):
    """What a node has to offer. Last message per subject."""

    node: str
    boot_id: str
    gpus: tuple[Gpu, ...]
    labels: dict[str, str] = {}
    runners: tuple[str, ...] = ("process",)
    """Ways this node can run a job: ``process``, ``docker``, ``kubelet``."""
    watched: bool = False
    """True where a monitor protects the GPUs: offline work is then placed only on those that it calls healthy."""
    draining: bool = False
    """True while the executor takes no new work because it is shutting down."""


class NodeLease(msgspec.Struct, frozen=True, kw_only=True):
    """Value in bucket ``node_leases``: the executor of this node is alive. Its absence is what counts."""

    node: str
    boot_id: str
    session: str
    """Identity of this lease. It outlives a restart of the executor that renews in time; a new one begins only when
    the old one was lost and every attempt under it has ended. Decisions name it."""
    time_ns: TimeNs


class LeaderLease(msgspec.Struct, frozen=True, kw_only=True):
    """Value in bucket ``leader``. The revision at which it was taken is the fencing term."""

    holder: str
    time_ns: TimeNs


class OnlineState(Event, frozen=True, kw_only=True):
    """Which online workload is on a GPU, and what was promised to it. Last message per subject."""

    node: str
    gpu: str
    workload: str | None
    """Null when no online workload is there."""
    latency_target_ms: Milliseconds | None = None
    pids: tuple[Count, ...] = ()
    since_ns: TimeNs = 0
    activity_peak_pct: Percent | None = None
    """Highest online activity of the last minutes, in percent. Null when it is not known."""
    uncovered_peak_pct: Percent | None = None
    """The same of the time in which not every online process carried the beacon, for which offline jobs must leave SMs
    free. Null: as `activity_peak_pct`."""
