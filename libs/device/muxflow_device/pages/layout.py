"""Layouts of the pages as Python sees them.

`xcuda-preload/include/muxflow_pages.h` describes them, and what the fields mean; a test compares every field's offset
and size with what a C compiler makes of that header.
"""

from __future__ import annotations

from ctypes import Structure, c_char, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from enum import IntEnum
from typing import Final

MAGIC: Final = 0x5846554D
VERSION: Final = 1

UUID_BYTES: Final = 64
ATTEMPT_BYTES: Final = 320
CAUSE_BYTES: Final = 160

JOB_SLOTS: Final = 64
BEACON_NAME_DIGITS: Final = 16
BEACON_PROCESSES: Final = 64


class PageKind(IntEnum):
    """Which page it is."""

    DEVICE = 1
    CONTROL = 2
    JOB = 3
    BEACON = 4


class Header(Structure):
    """First bytes of every page."""

    _fields_ = [
        ("magic", c_uint32),
        ("kind", c_uint16),
        ("version", c_uint16),
        ("size_bytes", c_uint32),
        ("reserved", c_uint32),
        ("uuid", c_char * UUID_BYTES),
    ]


class RawReadings(Structure):
    """What the monitor tells beside the gate; -1 stands for what the GPU cannot give."""

    _fields_ = [
        ("time_boottime_ns", c_int64),
        ("since_boottime_ns", c_int64),
        ("condition", c_uint32),
        ("hard", c_uint32),
        ("epoch", c_uint32),
        ("sm_activity_permille", c_int32),
        ("utilization_permille", c_int32),
        ("online_activity_permille", c_int32),
        ("offline_busy_permille", c_int32),
        ("sm_clock_mhz", c_int32),
        ("memory_used_bytes", c_int64),
        ("memory_total_bytes", c_int64),
        ("offline_memory_bytes", c_int64),
        ("cause", c_char * CAUSE_BYTES),
    ]


class RawDevicePage(Structure):
    """The device page."""

    _fields_ = [
        ("header", Header),
        ("pad0", c_uint8 * (128 - sizeof(Header))),
        ("gate", c_uint64),
        ("heartbeat", c_uint64),
        ("stale_after_ms", c_uint32),
        ("beacon_holdoff_us", c_uint32),
        ("pad1", c_uint8 * (64 - 24)),
        ("sequence", c_uint32),
        ("pad2", c_uint32),
        ("readings", RawReadings),
    ]


class RawControlPage(Structure):
    """The job control."""

    _fields_ = [
        ("header", Header),
        ("pad0", c_uint8 * (128 - sizeof(Header))),
        ("gate", c_uint64),
        ("phase", c_uint32),
        ("pad1", c_uint32),
        ("deadline_boottime_ns", c_int64),
        ("quota_bytes", c_uint64),
        ("context_bytes", c_uint64),
        ("pad2", c_uint8 * (192 - 168)),
        ("attempt", c_char * ATTEMPT_BYTES),
    ]


class RawProcessSlot(Structure):
    """One process of a job."""

    _fields_ = [
        ("owner", c_uint64),
        ("launches", c_uint64),
        ("busy_ns", c_uint64),
        ("throttled_ns", c_uint64),
        ("frozen_ns", c_uint64),
        ("memory_bytes", c_uint64),
        ("refused_bytes", c_uint64),
        ("inflight_ns", c_uint64),
        ("inflight", c_uint32),
        ("drained", c_uint32),
        ("gate_epoch", c_uint32),
        ("inflation_permille", c_uint32),
        ("last_error", c_uint32),
        ("last_error_call", c_uint32),
        ("last_error_boottime_ns", c_int64),
        ("updated_boottime_ns", c_int64),
        ("reserved", c_uint8 * (256 - 104)),
    ]


class RawJobPage(Structure):
    """The job page."""

    _fields_ = [
        ("header", Header),
        ("pad", c_uint8 * (512 - sizeof(Header))),
        ("slots", RawProcessSlot * JOB_SLOTS),
    ]


class RawBeaconSlot(Structure):
    """What an online process says."""

    _fields_ = [
        ("owner", c_uint64),
        ("launches", c_uint64),
        ("complete", c_uint64),
        ("reserved", c_uint8 * (64 - 24)),
    ]


class RawBeaconPage(Structure):
    """A beacon page."""

    _fields_ = [
        ("header", Header),
        ("pad0", c_uint8 * (128 - sizeof(Header))),
        ("slot", RawBeaconSlot),
    ]


class RawLook(Structure):
    """All of a device page at one moment: `struct mux_look` of xcuda-preload/src/pages_python.h."""

    _fields_ = [
        ("gate", c_uint64),
        ("heartbeat", c_uint64),
        ("error", c_int32),
        ("fresh", c_uint32),
        ("whole", c_uint32),
        ("stale_after_ms", c_uint32),
        ("uuid", c_char * UUID_BYTES),
        ("readings", RawReadings),
    ]


PAGE_BYTES: Final = {
    PageKind.DEVICE: 4096,
    PageKind.CONTROL: 4096,
    PageKind.JOB: sizeof(RawJobPage),
    PageKind.BEACON: sizeof(RawBeaconPage),
}
