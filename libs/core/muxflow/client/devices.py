"""Devices as the scheduler knows them, with the newest readings that their monitors have told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from muxflow.bus import Bus, Message
from muxflow.client.errors import NoAnswer
from muxflow.contracts import DeviceSummary, GpuSample, NodeTelemetry
from muxflow.contracts.catalogue import TELEMETRY

_CATCH_UP_S: Final = 10.0


class Reading(NamedTuple):
    """Readings of one GPU and when its monitor took them."""

    sample: GpuSample
    time_ns: int


def readings_of(telemetry: NodeTelemetry) -> dict[tuple[str, str], Reading]:
    """Take one node's telemetry apart: readings by node and UUID."""
    return {(telemetry.node, sample.gpu): Reading(sample, telemetry.time_ns) for sample in telemetry.gpus}


async def newest_readings(bus: Bus) -> dict[tuple[str, str], Reading]:
    """Read the newest telemetry of every node, as far as it is kept. Raises `NoAnswer`."""
    found: dict[tuple[str, str], Reading] = {}

    def take(message: Message[NodeTelemetry]) -> None:
        found.update(readings_of(message.event))

    reader = await bus.read(TELEMETRY, take, start="last")
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            await reader.caught_up()
    except TimeoutError:
        raise NoAnswer(f"telemetry could not be read within {_CATCH_UP_S:g} s") from None
    finally:
        await reader.stop()
    return found


def up_to_date(
    devices: Iterable[DeviceSummary], readings: Mapping[tuple[str, str], Reading]
) -> tuple[DeviceSummary, ...]:
    """Put newer readings, and the budget of that moment, in the place of those that the scheduler knows."""
    return tuple(_up_to_date(device, readings.get((device.node, device.gpu.uuid))) for device in devices)


def _up_to_date(device: DeviceSummary, reading: Reading | None) -> DeviceSummary:
    if reading is None or reading.time_ns <= device.sampled_ns or not device.watched:
        return device
    budget = reading.sample.budget_permille
    return replace(
        device,
        sample=reading.sample,
        sampled_ns=reading.time_ns,
        budget_permille=device.budget_permille if budget is None else budget,
    )
