"""What `top` shows, kept up to date by answers and events; knows nothing of terminals or connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from muxflow.contracts import DeviceAlert, DeviceState, DeviceSummary, EvictionAlert, NodeTelemetry, OnlineAlert

RECENT_S: Final = 600.0
"""How long evictions and alerts stay."""

Key = tuple[str, str]
"""Node and UUID of a GPU."""

Happening = EvictionAlert | DeviceAlert | OnlineAlert


class Recent(msgspec.Struct, frozen=True):
    """Something that people are told, and when."""

    time_ns: int
    alert: Happening


class Board:
    """GPUs and jobs as they are known now, and what happened lately."""

    def __init__(self) -> None:
        self.devices: dict[Key, DeviceSummary] = {}
        self.running: int | None = None
        """Jobs that run; None when nobody may say."""
        self.waiting: int | None = None
        self.trouble = ""
        """Why what is shown may be old; empty when it is not."""
        self._recent: dict[object, Recent] = {}

    def place(self, devices: Iterable[DeviceSummary]) -> None:
        """Take in the scheduler's answer: which GPUs there are, and who is on them. What is newer here stays."""
        self.devices = {
            key: self._newer(device, self.devices.get(key))
            for device in devices
            for key in ((device.node, device.gpu.uuid),)
        }

    def count(self, *, running: int | None, waiting: int | None) -> None:
        """Take in how many jobs there are."""
        self.running, self.waiting = running, waiting

    def read(self, telemetry: NodeTelemetry) -> None:
        """Take in one node's readings."""
        for sample in telemetry.gpus:
            device = self.devices.get((telemetry.node, sample.gpu))
            if device is not None and telemetry.time_ns > device.sampled_ns:
                self.devices[telemetry.node, sample.gpu] = replace(
                    device, sample=sample, sampled_ns=telemetry.time_ns, budget_permille=sample.budget_permille
                )

    def change(self, state: DeviceState) -> None:
        """Take in a change of state."""
        device = self.devices.get((state.node, state.gpu))
        if device is not None:
            self.devices[state.node, state.gpu] = replace(
                device,
                state=state.state,
                since_ns=state.since_ns,
                cause=state.cause,
                recovery=state.recovery,
                epoch=state.epoch,
                budget_permille=state.budget_permille,
            )

    def tell(self, alert: Happening, time_ns: int) -> None:
        """Take in an alert. What is told again about one eviction, once it is over, takes the place of its begin."""
        key: object = alert.id
        if isinstance(alert, EvictionAlert):
            key = (alert.tenant, alert.job, alert.attempt)
            before = self._recent.get(key)
            if before is not None and alert.total_ms is None:
                return
        self._recent[key] = Recent(time_ns, alert)

    def recent(self, now_ns: int) -> list[Recent]:
        """What happened lately, newest first."""
        self._recent = {key: each for key, each in self._recent.items() if now_ns - each.time_ns < RECENT_S * 1e9}
        return sorted(self._recent.values(), key=lambda each: -each.time_ns)

    @staticmethod
    def _newer(answer: DeviceSummary, known: DeviceSummary | None) -> DeviceSummary:
        """Join an answer with what events have told meanwhile."""
        if known is None:
            return answer
        if known.since_ns > answer.since_ns:
            answer = replace(
                answer,
                state=known.state,
                since_ns=known.since_ns,
                cause=known.cause,
                recovery=known.recovery,
                epoch=known.epoch,
            )
        if known.sampled_ns > answer.sampled_ns:
            answer = replace(
                answer,
                sample=known.sample,
                sampled_ns=known.sampled_ns,
                budget_permille=known.budget_permille,
            )
        return answer
