"""Faults that the driver reports by itself: XIDs, what they mean, and the thread that waits for them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final

import msgspec
import structlog

from muxflow_device.nvml import Nvml, Trouble, meaning

log = structlog.get_logger()

_WAIT_MS: Final = 250
"""How long one wait in the driver lasts: as long may a renewal of NVML have to wait for us."""
_AGAIN_S: Final = 1.0


class Reach(Enum):
    """Whom an XID hits."""

    APPLICATION = "application"
    """The process whose fault it was; under MPS, every client of the GPU."""
    DEVICE = "device"
    """Everybody on the GPU, until it is reset or replaced."""
    NOBODY = "nobody"
    """A report, or the consequence of another fault."""


class Xid(msgspec.Struct, frozen=True):
    """What NVIDIA's catalogue says about one XID."""

    title: str
    reach: Reach

    @property
    def fatal(self) -> bool:
        """Whether the GPU is of no use afterwards."""
        return self.reach is Reach.DEVICE

    def contained(self, *, shared: bool) -> bool | None:
        """Whether other processes on the GPU go on; `shared`: it has MPS clients. Null: not known."""
        match self.reach:
            case Reach.APPLICATION:
                return not shared
            case Reach.DEVICE:
                return False
            case Reach.NOBODY:
                return True


XIDS: Final = {
    13: Xid("graphics engine exception", Reach.APPLICATION),
    31: Xid("GPU memory page fault", Reach.APPLICATION),
    43: Xid("GPU stopped processing", Reach.APPLICATION),
    45: Xid("preemptive clean-up after an earlier fault or a killed process", Reach.NOBODY),
    46: Xid("GPU stopped processing (engine time-out)", Reach.DEVICE),
    48: Xid("double-bit ECC error", Reach.DEVICE),
    61: Xid("internal micro-controller breakpoint", Reach.DEVICE),
    62: Xid("internal micro-controller halt", Reach.DEVICE),
    63: Xid("memory row remapped or page retired", Reach.NOBODY),
    64: Xid("memory row remapping or page retirement failed", Reach.DEVICE),
    68: Xid("video processor exception", Reach.APPLICATION),
    69: Xid("graphics engine class error", Reach.APPLICATION),
    74: Xid("NVLink error", Reach.DEVICE),
    79: Xid("GPU has fallen off the bus", Reach.DEVICE),
    92: Xid("high single-bit ECC error rate", Reach.NOBODY),
    94: Xid("contained ECC error", Reach.APPLICATION),
    95: Xid("uncontained ECC error", Reach.DEVICE),
    109: Xid("context switch time-out", Reach.APPLICATION),
    119: Xid("GSP RPC time-out", Reach.DEVICE),
    120: Xid("GSP error", Reach.DEVICE),
    140: Xid("unrecovered ECC error", Reach.DEVICE),
    143: Xid("GPU initialization failure", Reach.DEVICE),
}
"""The XIDs that compute nodes meet, from NVIDIA's "XID Errors" catalogue (docs.nvidia.com/deploy/xid-errors)."""

_UNKNOWN: Final = Xid("not in our table", Reach.APPLICATION)


def describe(xid: int) -> Xid:
    """Look an XID up. One that is not in the table is taken for an application's."""
    return XIDS.get(xid, _UNKNOWN)


class XidWatch:
    """A thread that waits for the XIDs of some GPUs, and calls `on_xid(uuid, xid)` from there.

    A driver that gives no XIDs for a GPU is asked once; everything else is tried again for ever.
    """

    def __init__(self, nvml: Nvml, uuids: Iterable[str], on_xid: Callable[[str, int], object]) -> None:
        self._nvml = nvml
        self._uuids = tuple(uuids)
        self._on_xid = on_xid
        self._unsupported: set[str] = set()
        self._stopping = threading.Event()
        self._renew = threading.Event()
        self._complaint = ""
        self._thread = threading.Thread(target=self._run, name="xid", daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def again(self) -> None:
        """Register all GPUs anew: one that did not answer before does now."""
        self._renew.set()

    def close(self) -> None:
        """End; returns when the wait under way is over, at most a quarter of a second later."""
        self._stopping.set()
        self._renew.set()
        if self._thread.is_alive():
            self._thread.join(4 * _WAIT_MS / 1000)

    def _run(self) -> None:
        import pynvml  # noqa: PLC0415 - see muxflow_device.nvml

        while not self._stopping.is_set() and self._unsupported != set(self._uuids):
            self._renew.clear()
            try:
                self._watch(pynvml)
            except pynvml.NVMLError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.warning("cannot wait for XIDs, trying again", error=self._complaint)
                self._stopping.wait(_AGAIN_S)

    def _watch(self, pynvml: Any) -> None:
        """Wait with one event set, until it must be made anew. Raises `NVMLError`."""
        with self._nvml.using() as opening:
            events = pynvml.nvmlEventSetCreate()
            names = {}
            for uuid in self._uuids:
                handle = self._register(pynvml, events, uuid)
                if handle is not None:
                    names[_address(handle)] = uuid
        if not names:
            self._renew.wait(_AGAIN_S)  # nobody answers; `again` tells, and so does a renewal of NVML
        try:
            while names and not self._stopping.is_set() and not self._renew.is_set():
                with self._nvml.using() as now:
                    if now != opening:
                        return
                    event = self._next(pynvml, events)
                if event is not None and (gpu := names.get(_address(event.device))) is not None:
                    self._complaint = ""
                    self._on_xid(gpu, int(event.eventData))
        finally:
            with self._nvml.using() as now:
                if now == opening:
                    pynvml.nvmlEventSetFree(events)

    def _register(self, pynvml: Any, events: Any, uuid: str) -> Any:
        """Add a GPU to the set; None if it gives no XIDs, or does not answer now (`again` is called when it does)."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            if not pynvml.nvmlDeviceGetSupportedEventTypes(handle) & pynvml.nvmlEventTypeXidCriticalError:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)  # noqa: TRY301 - handled like the driver's own
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
        except pynvml.NVMLError as error:
            if meaning(error.value) is Trouble.DRIVER:
                raise
            if meaning(error.value) is Trouble.UNSUPPORTED and uuid not in self._unsupported:
                self._unsupported.add(uuid)
                log.warning("this GPU reports no XIDs", gpu=uuid)
            return None
        return handle

    def _next(self, pynvml: Any, events: Any) -> Any:
        try:
            return pynvml.nvmlEventSetWait_v2(events, _WAIT_MS)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_TIMEOUT:
                return None
            raise


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
