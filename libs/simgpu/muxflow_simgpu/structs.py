"""What can be known of simulated devices. Times are nanoseconds of CLOCK_MONOTONIC, as `time.monotonic_ns`."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

import msgspec


class OperationKind(IntEnum):
    """What a stream was given to do."""

    KERNEL = 1
    COPY_H2D = 2
    COPY_D2H = 3
    COPY_D2D = 4
    MEMSET = 5
    HOST_FUNCTION = 6
    WORD_WAIT = 7
    """A kernel that spins until a word in memory is set."""
    MARK = 8
    """Takes no time: event records, waits, empty nodes of graphs."""


KERNELS: Final = frozenset({OperationKind.KERNEL, OperationKind.WORD_WAIT})
"""What keeps SMs busy."""


class MpsState(StrEnum):
    """Of an MPS control daemon and its server, as a device knows them."""

    IDLE = "idle"
    REQUESTED = "requested"
    STARTING = "starting"
    READY = "ready"
    FAULTED = "faulted"
    STOPPING = "stopping"
    CLOSING = "closing"
    """Serves whom it has, and takes nobody new."""


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of GPU that can be simulated."""

    name: str
    product: str
    memory_bytes: int
    context_bytes: int
    sm_count: int
    base_mhz: int
    boost_mhz: int
    limit_w: int
    bandwidth_gbps: int
    """Of device memory, in 10⁹ bytes/s."""
    pcie_gbps: int
    """Of copies in one direction, in 10⁹ bytes/s."""
    gpm: bool


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device at `now_ns`."""

    index: int
    uuid: str
    kind: str
    lost: bool
    memory_bytes: int
    memory_used_bytes: int
    sm_clock_mhz: int
    boost_mhz: int
    throttle_reasons: int
    """A mask of NVML's clock event reasons: those that were injected."""
    created_ns: int
    now_ns: int
    busy_s: float
    """Seconds since `created_ns` with a kernel running."""
    sm_s: float
    """The same, weighed with the share of SMs that ran kernels."""
    memory_s: float
    """Seconds, weighed with the share of memory bandwidth in use."""
    operations: int
    xids: int


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A process on a device."""

    pid: int
    tag: str
    mps_server_pid: int | None
    memory_bytes: int
    context_bytes: int
    since_ns: int
    thread_share: float
    busy_s: float
    error: int
    """CUresult that all its calls give from now on; 0: none."""
    unfinished: int


class Mps(msgspec.Struct, frozen=True, kw_only=True):
    """An MPS control daemon that serves a device."""

    state: MpsState
    control_pid: int
    server_pid: int | None
    uid: int
    thread_pct: int
    clients: int
    faults: int


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation that has ended: a line of the device's own log."""

    number: int
    """Counts them, from 1."""
    pid: int
    tag: str
    kind: OperationKind
    enqueued_ns: int
    started_ns: int | None
    """None: it was cancelled before it started."""
    ended_ns: int
    ran_ns: int
    """Of the time from start to end, that on the device: without waits for its time slice."""
    work_ns: float
    """How long it takes alone, at boost clock."""
    context: int
    stream: int
    cancelled: bool
    sm_share: float
    bandwidth: float


class Xid(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that the driver reported."""

    number: int
    """Counts them, from 1."""
    time_ns: int
    xid: int
    pid: int | None
    """Of the process that caused it, where it is known."""
