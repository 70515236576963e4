"""``queue``: which jobs wait, in which order and for what, and how matching went last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muxflow.cli import gpus, output
from muxflow.cli.ages import age
from muxflow.cli.command import Session, command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from muxflow.contracts import QueuedJob, Solve


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow queue", "muxflow queue --json | jq '.jobs[] | select(.position == 0) | .waiting'")(queue)


async def queue(
    session: Session,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many, the next one first.")] = 100,
) -> None:
    """List the jobs that wait, the next one first, and why each does.

    Without --tenant operators see those of all, and the newest matching with its proof: no other one costs less. Users
    see their own; POSITION counts those of others too.
    """
    async with session.connect() as client:
        reply = await client.queue(limit=limit)
        known = {} if session.as_json else await gpus.names(client)
    if session.as_json:
        output.json(reply)
        return
    if reply.jobs:
        tenants = {job.tenant for job in reply.jobs} != {"default"}
        columns = ["POSITION", *(["TENANT"] if tenants else []), "JOB", "PRIORITY", "MEMORY", "KINDS", "SINCE", "WHY"]
        output.table(columns, [_row(job, known, tenants=tenants) for job in reply.jobs], wide="WHY")
    else:
        output.line("no job waits")
    if reply.total > len(reply.jobs):
        output.line(f"… and {reply.total - len(reply.jobs)} more (--limit)")
    if reply.solves:
        output.line(solved(reply.solves[-1]))


def _row(job: QueuedJob, known: Mapping[str, str], *, tenants: bool) -> list[output.Cell]:
    from muxflow.sizes import format_size

    return [
        str(job.position + 1),
        *([job.tenant] if tenants else []),
        job.job,
        str(job.priority),
        format_size(job.memory_bytes),
        ",".join(job.kinds) or "any",
        age(job.since_ns),
        gpus.told(job.waiting, known),
    ]


def solved(solve: Solve) -> str:
    """Say in one line how a matching went, and that it is proved."""
    sizes = f"{_count(solve.jobs, 'job')} and {_count(solve.gpus, 'GPU')}"
    classes = f"{solve.job_classes} × {solve.gpu_classes} classes"
    throughput = "" if solve.throughput is None else f", throughput {solve.throughput:.2f}"
    return (
        f"matched {age(solve.time_ns)} ago ({solve.trigger}): {sizes} in {classes}; "
        f"{solve.placed} placed, {solve.moved} moved{throughput}; "
        f"it costs {solve.cost}, and none costs less than {solve.bound}; {solve.solve_ms:.1f} ms"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
