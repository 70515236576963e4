"""A machine with simulated GPUs: its devices are files in one directory, which any process may open."""

from __future__ import annotations

import errno
import os
import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from muxflow_simgpu import library
from muxflow_simgpu.errors import SimulationError
from muxflow_simgpu.native import DIR_VARIABLE, environment
from muxflow_simgpu.structs import Client, Device, Kind, Mps, MpsState, Operation, OperationKind, Xid

if TYPE_CHECKING:
    from ctypes import c_void_p

DEVICES_MAX: Final = 32

_NAMESPACE: Final = uuid.UUID("6d757866-6c6f-7720-7369-6d756c617465")
_FILE: Final = re.compile(r"device-(\d+)")
_PREFIX_MIN: Final = 4
"""Fewer characters of a UUID could be an index."""
_CHUNK: Final = 1024
"""Entries of the log that are read at once: it is locked meanwhile."""
_RING: Final = 256
_CLIENTS: Final = 128
_MPS_STATES: Final = (
    MpsState.IDLE,
    MpsState.REQUESTED,
    MpsState.STARTING,
    MpsState.READY,
    MpsState.FAULTED,
    MpsState.STOPPING,
    MpsState.CLOSING,
)
"""From 1 on, as ``enum simgpu_mps_state``."""


def default_directory() -> Path:
    """Find where this user's devices are: $MUXFLOW_SIMGPU, else a folder of ``/dev/shm``."""
    return Path(os.environ.get(DIR_VARIABLE) or f"/dev/shm/muxflow-simgpu-{os.getuid()}")  # noqa: S108 - a tmpfs


def kinds() -> tuple[Kind, ...]:
    """List the kinds that can be simulated. Raises `NotBuiltError`."""
    control = library.load()
    found: list[Kind] = []
    struct = library.KindStruct()
    while control.simgpu_control_kind(len(found), library.byref(struct)) == 0:
        found.append(
            Kind(
                name=struct.name.decode(),
                product=struct.product.decode(),
                memory_bytes=struct.memory_bytes,
                context_bytes=struct.context_bytes,
                sm_count=struct.sm_count,
                base_mhz=struct.base_mhz,
                boost_mhz=struct.boost_mhz,
                limit_w=struct.limit_w,
                bandwidth_gbps=struct.bandwidth_gbps,
                pcie_gbps=struct.pcie_gbps,
                gpm=bool(struct.gpm),
            )
        )
    return tuple(found)


class SimulatedMachine:
    """The devices of one directory. As a context manager it removes them at the end.

    Every call raises `SimulationError` for a device that is not there, and `NotBuiltError` where nothing is built.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._control = library.load()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *kinds: str, random_uuids: bool = False, log: bool = True) -> tuple[Device, ...]:
        """Make one device for each kind, all or none of them.

        The same place in the same directory has the same UUID each time, unless `random_uuids`. Without `log` the
        device does not remember its operations.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        started: list[int] = []
        try:
            for kind in kinds:
                index = self._free_index()
                self._create(index, kind, random_uuid=random_uuids, log=log)
                started.append(index)
        except SimulationError:
            for index in started:
                self.remove(index)
            self._remove_directory()
            raise
        return tuple(self.device(index) for index in started)

    def stop(self) -> None:
        """Remove all devices, and the directory if nothing else is in it. Processes on them go on, unseen."""
        for index in self._indices():
            self.remove(index)
        self._remove_directory()

    def remove(self, index: int) -> None:
        """Remove one device."""
        self._check(self._control.simgpu_control_remove(self._name, index), index)

    def environment(self) -> dict[str, str]:
        """Make the variables with which a process sees these devices: see `muxflow_simgpu.environment`."""
        return environment(self.directory)

    # --- looking ---

    def devices(self) -> tuple[Device, ...]:
        """List the devices by index."""
        return tuple(self.device(index) for index in self._indices())

    def find(self, name: str) -> Device:
        """Find a device by its index, its UUID, or at least four characters of the beginning of its UUID."""
        devices = self.devices()
        bare = name.lower().removeprefix("gpu-")
        found = [
            device
            for device in devices
            if name == str(device.index)
            or (len(bare) >= _PREFIX_MIN and device.uuid.removeprefix("GPU-").startswith(bare))
        ]
        if len(found) != 1:
            what = "no such device" if not found else f"names {len(found)} devices"
            known = ", ".join(f"{device.index} ({device.uuid})" for device in devices) or "none"
            raise SimulationError(f"{name}: {what} in {self.directory}; there are: {known}")
        return found[0]

    def device(self, index: int) -> Device:
        """Read one device."""
        struct = library.DeviceStruct()
        with self._open(index) as gpu:
            self._control.simgpu_control_device(gpu, library.byref(struct))
        return Device(
            index=struct.index,
            uuid=f"GPU-{uuid.UUID(bytes=bytes(struct.uuid))}",
            kind=struct.kind.decode(),
            lost=bool(struct.lost),
            memory_bytes=struct.memory_bytes,
            memory_used_bytes=struct.memory_used_bytes,
            sm_clock_mhz=struct.sm_clock_mhz,
            boost_mhz=struct.boost_mhz,
            throttle_reasons=struct.throttle_reasons,
            created_ns=struct.created_ns,
            now_ns=struct.now_ns,
            busy_s=struct.busy_ns / 1e9,
            sm_s=struct.sm_ns / 1e9,
            memory_s=struct.memory_ns / 1e9,
            operations=struct.operations,
            xids=struct.xids,
        )

    def clients(self, index: int) -> tuple[Client, ...]:
        """List the processes on a device."""
        structs = (library.ClientStruct * _CLIENTS)()
        with self._open(index) as gpu:
            count = self._control.simgpu_control_clients(gpu, structs, len(structs))
        return tuple(
            Client(
                pid=struct.pid,
                tag=struct.tag.decode(),
                mps_server_pid=struct.mps_server_pid or None,
                memory_bytes=struct.memory_bytes,
                context_bytes=struct.context_bytes,
                since_ns=struct.since_ns,
                thread_share=struct.thread_share,
                busy_s=struct.busy_ns / 1e9,
                error=struct.error,
                unfinished=struct.unfinished,
            )
            for struct in structs[:count]
        )

    def mps(self, index: int) -> tuple[Mps, ...]:
        """List the MPS control daemons that serve a device."""
        structs = (library.MpsStruct * 8)()
        with self._open(index) as gpu:
            count = self._control.simgpu_control_mps(gpu, structs, len(structs))
        return tuple(
            Mps(
                state=_MPS_STATES[struct.state - 1],
                control_pid=struct.control_pid,
                server_pid=struct.server_pid or None,
                uid=struct.uid,
                thread_pct=struct.thread_pct,
                clients=struct.clients,
                faults=struct.faults,
            )
            for struct in structs[:count]
        )

    def operations(self, index: int, *, after: int = 0) -> tuple[Operation, ...]:
        """Read the device's log: operations that have ended, with numbers above `after`, in order of their ends.

        The device remembers the last 65,536.
        """
        found: list[Operation] = []
        structs = (library.OperationStruct * _CHUNK)()
        count = _CHUNK
        with self._open(index) as gpu:
            while count == _CHUNK:
                count = self._control.simgpu_control_log(gpu, after, structs, _CHUNK)
                found.extend(_operation(struct) for struct in structs[:count])
                after = found[-1].number if found else after
        return tuple(found)

    def xids(self, index: int, *, after: int = 0) -> tuple[Xid, ...]:
        """Read the XIDs with numbers above `after`; the device remembers the last 256."""
        structs = (library.XidStruct * _RING)()
        with self._open(index) as gpu:
            count = self._control.simgpu_control_xids(gpu, after, structs, _RING)
        return tuple(
            Xid(number=struct.number, time_ns=struct.time_ns, xid=struct.xid, pid=struct.pid or None)
            for struct in structs[:count]
        )

    # --- breaking ---

    def inject_xid(self, index: int, xid: int, *, pid: int | None = None) -> None:
        """Let an XID happen, with its effect, to this process (None: to all of them)."""
        with self._open(index) as gpu:
            self._control.simgpu_control_inject_xid(gpu, xid, pid or 0)

    def lose(self, index: int) -> None:
        """Let the GPU fall off the bus."""
        with self._open(index) as gpu:
            self._control.simgpu_control_lose(gpu)

    def restore(self, index: int) -> None:
        """Bring a lost GPU back, empty."""
        with self._open(index) as gpu:
            self._control.simgpu_control_restore(gpu)

    def set_clock(self, index: int, mhz: int | None, *, throttle_reasons: int = 0) -> None:
        """Set the SM clock, and NVML's reasons for it. None: as fast as it can, for no reason."""
        with self._open(index) as gpu:
            self._control.simgpu_control_set_clock(gpu, mhz or 0, throttle_reasons if mhz else 0)

    def crash_mps_server(self, index: int) -> int:
        """Kill the MPS server of a device, as a crash would. Gives its pid."""
        for record in self.mps(index):
            if record.server_pid is not None:
                os.kill(record.server_pid, signal.SIGKILL)
                return record.server_pid
        raise SimulationError(f"device {index}: no MPS server runs on it")

    # --- files ---

    @property
    def _name(self) -> bytes:
        return os.fsencode(self.directory)

    def _indices(self) -> list[int]:
        try:
            names = os.listdir(self.directory)  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def _free_index(self) -> int:
        taken = self._indices()
        index = next((index for index in range(DEVICES_MAX) if index not in taken), None)
        if index is None:
            raise SimulationError(f"{self.directory}: a machine has at most {DEVICES_MAX} devices")
        return index

    def _create(self, index: int, kind: str, *, random_uuid: bool, log: bool) -> None:
        name = f"{self.directory.resolve()}/{index}"
        made = uuid.uuid4() if random_uuid else uuid.uuid5(_NAMESPACE, name)
        result = self._control.simgpu_control_create(self._name, index, kind.encode(), made.bytes, log)
        if result == -errno.ENOENT and self.directory.is_dir():
            known = ", ".join(entry.name for entry in kinds())
            raise SimulationError(f"{kind}: no such kind of GPU; there are: {known}")
        self._check(result, index)

    @contextmanager
    def _open(self, index: int) -> Iterator[c_void_p]:
        gpu = library.handle()
        self._check(self._control.simgpu_control_open(self._name, index, library.byref(gpu)), index)
        try:
            yield gpu
        finally:
            self._control.simgpu_control_close(gpu)

    def _check(self, result: int, index: int) -> None:
        if result == -errno.ENOENT:
            raise SimulationError(f"device {index}: there is none in {self.directory}")
        if result == -errno.EPROTO:
            raise SimulationError(f"device {index} of {self.directory}: made by another version; remove it")
        if result < 0:
            raise SimulationError(f"device {index} of {self.directory}: {os.strerror(-result)}")

    def _remove_directory(self) -> None:
        try:
            self.directory.rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY, errno.EPERM, errno.EACCES}:
                raise


def _operation(struct: library.OperationStruct) -> Operation:
    return Operation(
        number=struct.number,
        pid=struct.pid,
        tag=struct.tag.decode(),
        kind=OperationKind(struct.kind),
        enqueued_ns=struct.enqueued_ns,
        started_ns=struct.started_ns or None,
        ended_ns=struct.ended_ns,
        ran_ns=struct.ran_ns,
        work_ns=struct.work_ns,
        context=struct.context,
        stream=struct.stream,
        cancelled=bool(struct.cancelled),
        sm_share=struct.sm_share,
        bandwidth=struct.bandwidth,
    )
