"""What the profiler has measured: jobs alone on each GPU kind, and online workloads with their forecasts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from muxflow.bus import Bus, Message, Reader
from muxflow.contracts import OfflineProfile, OnlineProfile
from muxflow.contracts.catalogue import PROFILES_OFFLINE, PROFILES_ONLINE


class Profiles:
    """Newest profiles. `on_measured(key)` is called when a profile of that key has become known, once loaded."""

    def __init__(self, bus: Bus, *, on_measured: Callable[[str], None]) -> None:
        self._bus = bus
        self._on_measured = on_measured
        self._readers: list[Reader] = []
        self._offline: dict[str, dict[str, OfflineProfile]] = defaultdict(dict)
        self._online: dict[tuple[str, str], OnlineProfile] = {}
        self._loaded = False

    async def load(self) -> None:
        """Learn what was measured so far, and go on listening."""
        self._readers.append(await self._bus.read(PROFILES_OFFLINE, self._offline_told, start="last"))
        self._readers.append(await self._bus.read(PROFILES_ONLINE, self._online_told, start="last"))
        for reader in self._readers:
            await reader.caught_up()
        self._loaded = True

    async def close(self) -> None:
        """Stop listening."""
        for reader in self._readers:
            await reader.stop()

    def of(self, key: str) -> tuple[OfflineProfile, ...]:
        """Profiles of a key (`JobSpec.measured_as`), one per GPU kind; those that could not be made included."""
        return tuple(self._offline[key].values()) if key in self._offline else ()

    def online(self, workload: str | None, gpu_kind: str) -> OnlineProfile | None:
        """What is known of an online workload on a GPU kind."""
        return None if workload is None else self._online.get((workload, gpu_kind))

    def _offline_told(self, message: Message[OfflineProfile]) -> None:
        profile = message.event
        self._offline[profile.key][profile.gpu_kind] = profile
        if self._loaded:
            self._on_measured(profile.key)

    def _online_told(self, message: Message[OnlineProfile]) -> None:
        profile = message.event
        self._online[profile.workload, profile.gpu_kind] = profile
