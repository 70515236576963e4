"""The control library through ctypes: layouts and signatures of ``src/control.h``, and nothing more."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char, c_char_p, c_double, c_float, c_int, c_int32, c_uint8, c_uint16, c_void_p
from ctypes import c_uint32 as u32
from ctypes import c_uint64 as u64
from functools import cache
from typing import Final

from muxflow_simgpu.native import native_dir


class KindStruct(ctypes.Structure):
    _fields_ = (
        ("name", c_char * 16),
        ("product", c_char * 48),
        ("memory_bytes", u64),
        ("context_bytes", u64),
        ("sm_count", u32),
        ("base_mhz", u32),
        ("boost_mhz", u32),
        ("limit_w", u32),
        ("bandwidth_gbps", u32),
        ("pcie_gbps", u32),
        ("gpm", u32),
        ("reserved", u32),
    )


class DeviceStruct(ctypes.Structure):
    _fields_ = (
        ("index", u32),
        ("lost", u32),
        ("kind", c_char * 16),
        ("uuid", c_uint8 * 16),
        ("memory_bytes", u64),
        ("memory_used_bytes", u64),
        ("throttle_reasons", u64),
        ("sm_clock_mhz", u32),
        ("boost_mhz", u32),
        ("created_ns", u64),
        ("now_ns", u64),
        ("busy_ns", c_double),
        ("sm_ns", c_double),
        ("memory_ns", c_double),
        ("operations", u64),
        ("xids", u64),
    )


class ClientStruct(ctypes.Structure):
    _fields_ = (
        ("pid", u32),
        ("mps_server_pid", u32),
        ("id", u64),
        ("memory_bytes", u64),
        ("context_bytes", u64),
        ("since_ns", u64),
        ("thread_share", c_double),
        ("busy_ns", c_double),
        ("error", c_int32),
        ("unfinished", u32),
        ("tag", c_char * 16),
    )


class MpsStruct(ctypes.Structure):
    _fields_ = (
        ("state", u32),
        ("control_pid", u32),
        ("server_pid", u32),
        ("uid", u32),
        ("thread_pct", u32),
        ("clients", u32),
        ("faults", u64),
    )


class OperationStruct(ctypes.Structure):
    _fields_ = (
        ("number", u64),
        ("id", u64),
        ("enqueued_ns", u64),
        ("started_ns", u64),
        ("ended_ns", u64),
        ("ran_ns", u64),
        ("work_ns", c_double),
        ("pid", u32),
        ("context", u32),
        ("stream", u32),
        ("kind", c_uint16),
        ("cancelled", c_uint16),
        ("sm_share", c_float),
        ("bandwidth", c_float),
        ("tag", c_char * 16),
    )


class XidStruct(ctypes.Structure):
    _fields_ = (("number", u64), ("time_ns", u64), ("xid", u32), ("pid", u32))


STRUCTS: Final = (KindStruct, DeviceStruct, ClientStruct, MpsStruct, OperationStruct, XidStruct)
"""In the order of ``simgpu_control_sizes``."""

_SIGNATURES: Final = {
    "sizes": (None, [POINTER(u32)]),
    "now": (u64, []),
    "kind": (c_int, [u32, POINTER(KindStruct)]),
    "create": (c_int, [c_char_p, u32, c_char_p, c_char_p, u32]),
    "remove": (c_int, [c_char_p, u32]),
    "open": (c_int, [c_char_p, u32, POINTER(c_void_p)]),
    "close": (None, [c_void_p]),
    "device": (None, [c_void_p, POINTER(DeviceStruct)]),
    "clients": (u32, [c_void_p, POINTER(ClientStruct), u32]),
    "mps": (u32, [c_void_p, POINTER(MpsStruct), u32]),
    "log": (u32, [c_void_p, u64, POINTER(OperationStruct), u32]),
    "xids": (u32, [c_void_p, u64, POINTER(XidStruct), u32]),
    "inject_xid": (None, [c_void_p, u32, u32]),
    "lose": (None, [c_void_p]),
    "restore": (None, [c_void_p]),
    "set_clock": (None, [c_void_p, u32, u64]),
}


@cache
def load() -> ctypes.CDLL:
    """Load the control library. Raises `muxflow_simgpu.NotBuiltError`, and TypeError for one of other layouts."""
    library = ctypes.CDLL(str(native_dir() / "libsimgpu_control.so"))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"simgpu_control_{name}")
        function.restype = result
        function.argtypes = arguments
    sizes = (u32 * len(STRUCTS))()
    library.simgpu_control_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(struct) for struct in STRUCTS]:
        raise TypeError(f"libsimgpu_control.so has other layouts than {__name__}; run `make native`")
    return library


def handle() -> c_void_p:
    """Make an empty handle, for ``open``."""
    return c_void_p()


__all__ = ["STRUCTS", "byref", "handle", "load"]
