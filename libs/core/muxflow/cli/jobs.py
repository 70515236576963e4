"""``jobs``, ``status``, ``cancel``, ``logs``: what became of a job, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from muxflow.cli import gpus, output
from muxflow.cli.ages import age, duration
from muxflow.cli.command import CommandError, Session, command

if TYPE_CHECKING:
    from muxflow.contracts import JobRecord, JobReply, JobSummary, Transition


def _states() -> list[str]:
    from muxflow.contracts import JobState

    return [state.value for state in JobState]


JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job, or TENANT/NAME.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "muxflow jobs --state running", "muxflow jobs --json | jq '.[].job'")(jobs)
    command(app, "muxflow status hello")(status)
    command(app, "muxflow logs hello --follow")(logs)
    command(app, "muxflow cancel hello --wait")(cancel)


async def jobs(
    session: Session,
    *,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only jobs in this state (pending, running, failed, …); may be given several times.",
            autocompletion=_states,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many, newest first.")] = 100,
) -> None:
    """List jobs, newest first."""
    from muxflow.contracts import JobState

    try:
        states = tuple(JobState(word) for word in state or ())
    except ValueError as error:
        known = ", ".join(state.value for state in JobState)
        raise CommandError(f"--state: {str(error).split(' is not')[0]} is no state; known are {known}", 2) from None
    async with session.connect() as client:
        reply = await client.jobs(states=states, limit=limit)
        names = {} if session.as_json else await gpus.names(client)
    if session.as_json:
        output.json(reply.jobs)
        return
    if not reply.jobs:
        output.line("no jobs")
        return
    tenants = {job.tenant for job in reply.jobs} != {"default"}
    columns = [*(["TENANT"] if tenants else []), "JOB", "STATE", "TRY", "AGE", "REASON"]
    output.table(columns, [_row(job, names, tenants=tenants) for job in reply.jobs], wide="REASON")
    if reply.total > len(reply.jobs):
        output.line(f"… and {reply.total - len(reply.jobs)} more (--limit)")


def _row(job: JobSummary, known: Mapping[str, str], *, tenants: bool) -> list[output.Cell]:
    return [
        *([job.tenant] if tenants else []),
        job.job,
        output.state(job.state.value),
        str(job.attempt),
        age(job.submitted_ns),
        gpus.told(job.reason, known),
    ]


async def status(session: Session, *, job: JobArgument) -> None:
    """Say where a job is, why it is not running, and how it came there."""
    from muxflow.client import NotFound

    async with session.connect() as client:
        try:
            reply = await client.job(job)
        except NotFound as error:
            raise CommandError(f"{error}; was it rejected? See `muxflow events jobs.rejected`") from None
        known = {} if session.as_json else await gpus.names(client)
    if session.as_json:
        output.json(reply)
        return
    output.fields(summary(reply, known))
    output.line("")
    tell_story(reply.record, known)


def tell_story(record: JobRecord, known: Mapping[str, str]) -> None:
    """Print how a job came to where it is."""
    output.table(
        ["AGO", "STATE", "WHAT HAPPENED"],
        [
            [age(step.time_ns), output.state(step.state.value), gpus.told(_what_happened(step), known)]
            for step in record.story
        ],
        wide="WHAT HAPPENED",
    )


def _what_happened(step: Transition) -> str:
    return f"{step.stimulus}: {step.detail}" if step.detail else step.stimulus


def summary(reply: JobReply, known: Mapping[str, str]) -> list[tuple[str, output.Cell]]:
    """Say where a job is, and why it does not run."""
    record = reply.record
    pairs: list[tuple[str, output.Cell]] = [
        ("job", f"{record.tenant}/{record.job}"),
        ("state", output.state(record.state.value)),
    ]
    if record.reason:
        pairs.append(("reason", gpus.told(record.reason, known)))
    if reply.waiting:
        place = "" if reply.queue_position is None else f" (number {reply.queue_position + 1} in the queue)"
        pairs.append(("waits", f"{gpus.told(reply.waiting, known)}{place}"))
    if record.placement:
        gpu = known.get(record.placement.gpu) or gpus.told(record.placement.gpu, known)
        pairs.append(("where", f"node {record.placement.node}, {gpu}"))
    pairs.append(("attempts", _attempts(record)))
    if record.last_exit:
        pairs.append(("last exit", record.last_exit.describe()))
    if record.started_ns and record.placement:
        pairs.append(("running for", age(record.started_ns)))
    pairs.append(("submitted", f"{age(record.submitted_ns)} ago"))
    if record.state.terminal:
        pairs.append(("took", duration((record.changed_ns - record.submitted_ns) / 1e9)))
    return pairs


def _attempts(record: JobRecord) -> str:
    counts = {"failed": record.failures, "lost": record.losses, "stopped by MuxFlow": record.evictions}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{record.attempt} ({told})" if told else str(record.attempt)


async def logs(
    session: Session,
    *,
    job: JobArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended, through all its attempts.")
    ] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which attempt. Default: the newest.")] = None,
) -> None:
    """Print a job's output.

    In JSON, a piece's data is base64.
    """
    async with session.connect() as client:
        async for piece in client.logs(job, attempt=attempt, follow=follow, notice=output.note):
            if session.as_json:
                output.json(piece)
            else:
                sys.stdout.buffer.write(piece.data)
                sys.stdout.buffer.flush()


async def cancel(
    session: Session,
    *,
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no process of it is left.")] = False,
) -> None:
    """Stop a job for good."""
    async with session.connect() as client:
        handle = await client.cancel(job, reason=reason)
        outcome = await handle.outcome() if wait else None
    if session.as_json:
        output.json(outcome or {"tenant": handle.tenant, "job": handle.job, "requested": True})
        return
    name = f"{handle.tenant}/{handle.job}"
    output.line(f"{name}: {outcome.state.value}" if outcome else f"{name}: will be cancelled")
