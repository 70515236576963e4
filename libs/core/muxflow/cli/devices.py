"""``devices``: how the shared side of each GPU is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from muxflow.cli import gpus, output, readings
from muxflow.cli.command import Session, command

if TYPE_CHECKING:
    from muxflow.contracts import DeviceSummary


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "muxflow devices", "muxflow devices --json | jq '.[] | select(.state != \"healthy\")'")(devices)


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
