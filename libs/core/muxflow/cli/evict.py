"""``evict``: take a job off its GPU, back into the queue."""

from __future__ import annotations

from typing import Annotated

import typer

from muxflow.cli import gpus, output
from muxflow.cli.command import CommandError, Session, command
from muxflow.cli.jobs import JobArgument


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow evict train-1 --reason 'new driver'")(evict)


async def evict(
    session: Session,
    *,
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
) -> None:
    """Take a running job off its GPU; it goes back to the queue and starts anew, from its checkpoint if it has one.

    Its GPU is free then, and may be given to this job again. To keep offline work off it, disable the device.
    """
    async with session.connect() as client:
        record = (await client.job(job)).record
        placement = record.placement
        if placement is None:
            raise CommandError(f"{record.tenant}/{record.job} is {record.state.value}: it is on no GPU")
        known = await gpus.names(client)
        await client.evict(placement.node, placement.gpu, job=record.job, tenant=record.tenant, reason=reason)
    if session.as_json:
        output.json({"tenant": record.tenant, "job": record.job, "attempt": record.attempt, "requested": True})
        return
    where = f"{known.get(placement.gpu, placement.gpu)} of {placement.node}"
    saves = ", saves its state if it handles its checkpoint signal," if record.spec.checkpoint else ""
    output.line(
        f"{record.tenant}/{record.job}#{record.attempt} is stopped on {where}{saves} and goes back to the queue; "
        f"see `muxflow status {record.tenant}/{record.job}`"
    )
