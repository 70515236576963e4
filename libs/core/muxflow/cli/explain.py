"""``explain``: the whole story of a GPU, or of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muxflow.cli import device_story, gpus, jobs, output
from muxflow.cli.command import CommandError, Session, command
from muxflow.cli.events import since_option
from muxflow.cli.queue import solved
from muxflow.cli.readings import UNKNOWN, percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from muxflow.client import Client
    from muxflow.contracts import DeviceSummary, JobReply, PlacementOption, Solve

_OPTIONS = ["GPU", "MEMORY", "ONLINE", "LOAD", "GPUS", "FREE", "SM SHARE", "SPEED", "FITS", "BASIS", "NOTE"]


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow explain 0", "muxflow explain gpu-7/2 --since 3h", "muxflow explain resnet50-finetune")(
        explain
    )


async def explain(
    session: Session,
    *,
    what: Annotated[
        str,
        typer.Argument(
            metavar="DEVICE|JOB",
            help="A GPU: its UUID or the begin of it, its index, 'T4 #0', or NODE/ and one of these. "
            "Else a job: its name, or TENANT/NAME.",
        ),
    ],
    since: Annotated[float | None, since_option("1d")] = None,
) -> None:
    """Tell the story of one GPU: its changes of state and what caused them, what holds now, who is there.

    Or of one job: why it is where it is or waits, what was measured of it, and where else it could be. SPEED is the
    predicted one there, relative to running alone; FITS the probability that it fits into the memory that is left;
    BASIS what both come from. LOAD is how high the service's activity goes. --since concerns GPUs only.
    """
    async with session.connect() as client:
        device = await _device(client, what)
        if device is not None:
            await _explain_device(client, device, since_s=since, as_json=session.as_json)
        else:
            await _explain_job(client, what, as_json=session.as_json)


async def _explain_device(client: Client, device: DeviceSummary, *, since_s: float | None, as_json: bool) -> None:
    changes = await device_story.story(client, device, since_s=since_s)
    if as_json:
        output.json({"device": device, "story": [each.event for each in changes]})
    else:
        device_story.tell(device, changes)


async def _explain_job(client: Client, job: str, *, as_json: bool) -> None:
    from muxflow.client import NotFound

    try:
        reply = await client.job(job)
    except NotFound as error:
        raise CommandError(f"there is no GPU {job!r}, and {error}") from None
    queue = await client.queue(limit=1)
    solve = queue.solves[-1] if queue.solves else None  # operators only are told of matching
    if as_json:
        output.json({"job": reply, "solve": solve})
    else:
        _tell(reply, solve, await gpus.names(client))


async def _device(client: Client, what: str) -> DeviceSummary | None:
    """Find the GPU that is meant; None if it must be a job, or whoever asks may not look at GPUs."""
    from muxflow.client import NotAllowed

    try:
        devices = await client.devices()
    except NotAllowed:
        return None
    return gpus.meant(what, devices) if gpus.candidates(what, devices) else None


def _tell(reply: JobReply, solve: Solve | None, known: Mapping[str, str]) -> None:
    output.fields([*jobs.summary(reply, known), *_measured(reply)])
    if reply.options:
        output.line("")
        output.table(_OPTIONS, [_option(each) for each in reply.options], wide="NOTE")
    output.line("")
    jobs.tell_story(reply.record, known)
    if solve is not None:
        output.line("")
        output.line(solved(solve))


def _measured(reply: JobReply) -> list[tuple[str, output.Cell]]:
    pairs: list[tuple[str, output.Cell]] = []
    if reply.profile is not None:
        pairs.append(("profile", reply.profile))
    if reply.speed is not None:
        speed = reply.speed
        between = f"between {percent(100 * speed.low)} and {percent(100 * speed.high)}"
        pairs.append(("speed", f"{percent(100 * speed.normalized_throughput)} of alone, {between} ({speed.basis})"))
    return pairs


def _option(option: PlacementOption) -> list[output.Cell]:
    from muxflow.sizes import format_size

    speed = option.speed
    return [
        option.gpu_kind,
        format_size(option.gpu_memory_bytes),
        option.workload or UNKNOWN,
        percent(option.load_pct),
        str(option.gpus),
        str(option.free),
        percent(option.sm_share_pct),
        UNKNOWN if speed is None else percent(100 * speed.normalized_throughput),
        UNKNOWN if speed is None else percent(100 * speed.fits_probability),
        UNKNOWN if speed is None else speed.basis,
        option.note or UNKNOWN,
    ]
