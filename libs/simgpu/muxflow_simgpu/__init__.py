"""A simulated GPU at the driver boundary, for tests and for trying things out.

`SimulatedMachine` makes devices, watches them and breaks them; `environment` gives the variables with which an
unmodified program sees them; `device_busy` and the like compute the truth from a device's own log.
"""

from muxflow_simgpu.busy import Interval, busy_share, device_busy, idle, total_ns
from muxflow_simgpu.errors import NotBuiltError, SimulationError
from muxflow_simgpu.machine import SimulatedMachine, default_directory, kinds
from muxflow_simgpu.native import DIR_VARIABLE, environment, native_dir
from muxflow_simgpu.structs import (
    KERNELS,
    Client,
    Device,
    Kind,
    Mps,
    MpsState,
    Operation,
    OperationKind,
    Xid,
)

__all__ = [
    "DIR_VARIABLE",
    "KERNELS",
    "Client",
    "Device",
    "Interval",
    "Kind",
    "Mps",
    "MpsState",
    "NotBuiltError",
    "Operation",
    "OperationKind",
    "SimulatedMachine",
    "SimulationError",
    "Xid",
    "busy_share",
    "default_directory",
    "device_busy",
    "environment",
    "idle",
    "kinds",
    "native_dir",
    "total_ns",
]
