"""How a device came to its state."""

from __future__ import annotations

from typing import Final

from muxflow_decisions.device.memory import DeviceMemory

_SECOND_NS: Final = 1_000_000_000


def story(memory: DeviceMemory, *, now_ns: int) -> list[str]:
    """Tell the kept changes, one line each, oldest first, with their age in seconds."""
    return [
        f"{(now_ns - change.time_ns) / _SECOND_NS:9.1f} s ago  {change.state.value:<9}  "
        f"#{change.epoch} {change.stimulus}: {change.cause}"
        for change in memory.story
    ]
