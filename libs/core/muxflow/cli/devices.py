"""``devices``, ``explain``: how the shared side of each GPU is, and how it came to be so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muxflow.cli import gpus, output, readings
from muxflow.cli.ages import age
from muxflow.cli.command import Session, command
from muxflow.cli.events import since_option
from muxflow.cli.gpus import DeviceArgument

if TYPE_CHECKING:
    from muxflow.client import Received
    from muxflow.contracts import DeviceState, DeviceSummary

STORY_S = 86_400.0


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "muxflow devices", "muxflow devices --json | jq '.[] | select(.state != \"healthy\")'")(devices)
    command(app, "muxflow explain 0", "muxflow explain gpu-7/2 --since 3h")(explain)


async def devices(session: Session) -> None:
    """List GPUs: their state and its cause, who is served there, and which job has the rest.

    ONLINE names the workload and what it uses of the GPU, OFFLINE the job and for how much of the time its kernels run;
    BUDGET is the most that may be, '-' while the GPU's state lets no job run. BUSY is all of the GPU: SM activity where
    the GPU can tell it, else the share of time in which anything ran. GPUs that are only declared are unwatched:
    nothing is known of them.
    """
    async with session.connect() as client:
        found = await client.devices()
    if session.as_json:
        output.json(found)
    elif not found:
        output.line("no GPUs")
    else:
        columns = ["NODE", "GPU", "STATE", "ONLINE", "OFFLINE", "BUDGET", "BUSY", "MEMORY", "BECAUSE"]
        output.table(columns, [_row(device) for device in found], wide="BECAUSE")


def _row(device: DeviceSummary) -> list[output.Cell]:
    return [
        device.node,
        gpus.name(device.gpu),
        output.state(readings.state(device)),
        readings.online(device),
        readings.offline(device),
        readings.budget(device),
        readings.busy(device.sample),
        readings.memory(device.sample, device.gpu.memory_bytes),
        readings.stale(device) or device.cause or "-",
    ]


async def explain(
    session: Session,
    *,
    device: DeviceArgument,
    since: Annotated[float | None, since_option("1d")] = None,
) -> None:
    """Tell the story of one GPU: its changes of state and what caused them, what holds now, who is there.

    Goes back a day unless --since says otherwise.
    """
    from muxflow.contracts.catalogue import DEVICES_STATE

    async with session.connect() as client:
        found = gpus.meant(device, await client.devices())
        changes = DEVICES_STATE.of(node=found.node, gpu=found.gpu.uuid)
        story = without_repeats([each async for each in client.events(changes, since_s=since or STORY_S, follow=False)])
    if session.as_json:
        output.json({"device": found, "story": [each.event for each in story]})
        return
    output.fields([*_now(found), *_who(found), *_readings(found)])
    output.line("")
    if not story:
        output.line(
            "no change of its state is on record" if found.watched else "nobody watches it: it is only declared"
        )
        return
    columns = ["AGO", "STATE", "BUDGET", "ONLINE", "BUSY", "BECAUSE"]
    output.table(columns, [_change(each) for each in story], wide="BECAUSE")


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
