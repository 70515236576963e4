"""The story of one GPU: how its offline side is, who is there, and how it came to be so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muxflow.cli import gpus, output, readings
from muxflow.cli.ages import age

if TYPE_CHECKING:
    from muxflow.client import Client, Received
    from muxflow.contracts import DeviceState, DeviceSummary

STORY_S = 86_400.0


async def story(client: Client, device: DeviceSummary, *, since_s: float | None) -> list[Received]:
    """Read the changes of a GPU's state, a day of them unless said otherwise."""
    from muxflow.contracts.catalogue import DEVICES_STATE

    changes = DEVICES_STATE.of(node=device.node, gpu=device.gpu.uuid)
    return without_repeats([each async for each in client.events(changes, since_s=since_s or STORY_S, follow=False)])


def tell(device: DeviceSummary, changes: list[Received]) -> None:
    """Print what holds now, and the changes that led there."""
    output.fields([*_now(device), *_who(device), *_readings(device)])
    output.line("")
    if not changes:
        output.line(
            "no change of its state is on record" if device.watched else "nobody watches it: it is only declared"
        )
        return
    columns = ["AGO", "STATE", "BUDGET", "ONLINE", "BUSY", "BECAUSE"]
    output.table(columns, [_change(each) for each in changes], wide="BECAUSE")


def without_repeats(story: list[Received]) -> list[Received]:
    """Leave out what was told again of a state that lasted: it has the epoch of the change."""
    return [
        each
        for before, each in zip([None, *story], story, strict=False)
        if before is None or (before.event.epoch, before.event.since_ns) != (each.event.epoch, each.event.since_ns)
    ]


def _now(device: DeviceSummary) -> list[tuple[str, output.Cell]]:
    """How it is now, and what would change that."""
    pairs: list[tuple[str, output.Cell]] = [
        ("device", f"{gpus.place(device)} ({device.gpu.uuid})"),
        ("state", output.state(readings.state(device))),
    ]
    if device.since_ns:
        pairs.append(("for", age(device.since_ns)))
    if device.cause:
        pairs.append(("because", device.cause))
    if device.recovery:
        pairs.append(("healthy when", device.recovery))
    pairs.append(("new jobs", _new_jobs(device)))
    return pairs


def _new_jobs(device: DeviceSummary) -> str:
    if device.closed:
        return f"none: {device.closed}"
    return "welcome" if device.job is None else f"once {device.tenant}/{device.job} has left"


def _who(device: DeviceSummary) -> list[tuple[str, output.Cell]]:
    """Who is there, and what each may use."""
    pairs: list[tuple[str, output.Cell]] = [("online", _online(device)), ("offline", readings.offline(device))]
    if device.job is not None and device.sm_share_pct is not None:
        pairs.append(("SM share", f"{device.sm_share_pct}% for the job there"))
    if device.next_sm_share_pct is not None:
        pairs.append(("next SM share", f"{device.next_sm_share_pct}% for a job that starts now"))
    if device.budget_permille is not None:
        pairs.append(("budget", f"{readings.permille(device.budget_permille)} of the time"))
    return pairs


def _online(device: DeviceSummary) -> str:
    details = []
    if device.activity_peak_pct is not None:
        details.append(f"{readings.percent(device.activity_peak_pct)} at most lately")
    if device.forecast_peak_pct is not None:
        details.append(f"{readings.percent(device.forecast_peak_pct)} forecast")
    if device.latency_target_ms is not None:
        details.append(f"promised {device.latency_target_ms:g} ms")
    return readings.online(device) + (f" ({', '.join(details)})" if details else "")


def _readings(device: DeviceSummary) -> list[tuple[str, output.Cell]]:
    """The newest readings, as far as there are any; what the GPU cannot give is left out."""
    sample = device.sample
    if sample is None:
        return []
    known = (
        ("busy", None if readings.busy(sample) == readings.UNKNOWN else readings.busy(sample)),
        ("memory", readings.memory(sample, device.gpu.memory_bytes)),
        ("SM clock", f"{sample.sm_clock_mhz} MHz" if sample.sm_clock_mhz is not None else None),
        ("power", f"{sample.power_w:.0f} W" if sample.power_w is not None else None),
        ("temperature", f"{sample.temperature_c:.0f} °C" if sample.temperature_c is not None else None),
        ("throttled", readings.throttled(sample.throttle_reasons)),
        ("readings", readings.stale(device) or f"{age(device.sampled_ns)} old"),
    )
    return [(name, value) for name, value in known if value is not None]


def _change(received: Received) -> list[output.Cell]:
    change: DeviceState = received.event
    sample = change.sample
    return [
        age(change.since_ns),
        output.state(change.state.value),
        readings.permille(change.budget_permille),
        readings.percent(sample.online_activity_pct if sample else None),
        readings.busy(sample),
        change.cause or "-",
    ]
