"""What a monitor leaves to the next: each device's memory, which is good for one boot, and an operator's standing wish.

``<state_dir>/devices/<uuid>.json``, replaced whenever the state changes.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from muxflow.contracts import Gpu, encode_token
from muxflow_decisions.device.memory import DeviceMemory

log = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One device's file."""

    gpu: Gpu
    boot_id: str
    memory: DeviceMemory
    disabled: str | None = None
    """Reason for which an operator has disabled it; null: it is not."""


class DeviceMemories:
    """The files of all devices."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "devices"
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def open(self) -> None:
        """Make the directory. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self) -> dict[str, Kept]:
        """Read them all, by UUID. One that cannot be read is logged and forgotten: the device begins in Init."""
        found = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=Kept)
            except (OSError, msgspec.DecodeError) as error:
                log.warning("a device's memory cannot be read", path=str(path), error=str(error))
                continue
            found[kept.gpu.uuid] = kept
        return found

    def of_this_boot(self, kept: Kept | None) -> DeviceMemory | None:
        """Give the memory, if its clock is ours."""
        return kept.memory if kept is not None and kept.boot_id == self._boot_id else None

    def save(self, gpu: Gpu, memory: DeviceMemory, *, disabled: str | None) -> None:
        """Replace a device's file. Raises OSError."""
        kept = Kept(gpu=gpu, boot_id=self._boot_id, memory=memory, disabled=disabled)
        path = self._directory / f"{encode_token(gpu.uuid)}.json"
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(kept))
        draft.replace(path)
