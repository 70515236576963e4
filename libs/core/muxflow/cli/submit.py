"""``submit``: hand in jobs, and wait for them if asked to."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from muxflow.cli import output
from muxflow.cli.ages import age
from muxflow.cli.command import FAILURE, USAGE, CommandError, Session, command

if TYPE_CHECKING:
    from muxflow.client import Client, JobHandle
    from muxflow.contracts import JobRecord, JobSpec

VERDICT_S: Final = 5.0
"""How long to wait for the scheduler's word on a submission that is already safe."""

_LOOK_S: Final = 2.0
"""How long to look for a job of that name before handing in; submitting works without an answer too."""
_WAITS_AFTER_S: Final = 1.5
_WAITS_EVERY_S: Final = 10.0

_AGAIN: Final = "to run a job again, submit it under a new name, with --name NAME or in its file"


class Submitted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one submission so far."""

    tenant: str
    job: str
    submission_id: str
    state: str
    """``recorded`` (safe, no scheduler has answered), ``accepted``, ``rejected``, or the job's state."""
    reason: str = ""
    attempt: int | None = None
    exit_code: int | None = None
    existed: bool = False
    """Whether the identical job was there already, so that nothing was started."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One job that is stored, and the record that it had before, if any."""

    handle: JobHandle
    before: JobRecord | None = None


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(
        app,
        "muxflow submit examples/hello.yaml --wait",
        "muxflow submit examples/hello.yaml --name hello-2",
        "generate-jobs | muxflow submit -",
    )(submit)


async def submit(
    session: Session,
    *,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Job files; '-' is standard input.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Submit the one job of the one file under this name.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the jobs have ended; fail if one failed.")] = False,
) -> None:
    """Submit the jobs of job files, in their order. A job that is told as accepted will not be lost.

    A name is used up until its job is purged. The identical job under the same name is the same job: nothing is
    started again. Another job under that name is rejected.
    """
    from muxflow import jobfile

    specs = _renamed([spec for file in files for spec in jobfile.load(file)], name)
    async with session.connect() as client:
        submissions = [await _hand_in(client, spec) for spec in specs]
        waiting = asyncio.gather(*(_follow(session, each, wait=wait) for each in submissions))
        try:
            results = await waiting
        except asyncio.CancelledError:
            _tell_what_goes_on(submissions)
            raise
    if session.as_json:
        output.json(results)
    elif not wait and any(each.before and each.before.state.terminal for each in submissions):
        output.note(_AGAIN)
    if any(_failed(result, wait=wait) for result in results):
        raise typer.Exit(FAILURE)


def _renamed(specs: list[JobSpec], name: str | None) -> list[JobSpec]:
    if name is None:
        return specs
    from muxflow.contracts.names import JOB_NAME_PATTERN
    from muxflow.jobfile import NAME_RULE

    if len(specs) != 1:
        raise CommandError(f"--name {name}: there are {len(specs)} jobs, and one name is for one job", USAGE)
    if not re.search(JOB_NAME_PATTERN, name):
        raise CommandError(f"--name {name}: {NAME_RULE}", USAGE)
    return [msgspec.structs.replace(specs[0], name=name)]


async def _hand_in(client: Client, spec: JobSpec) -> Submission:
    """Have a job stored; returns when it is, so that the next one of the file comes after it."""
    from muxflow.client import NoAnswer, NotAllowed

    try:
        async with asyncio.timeout(_LOOK_S):
            there = await client.already_there(spec)
    except (NoAnswer, NotAllowed, TimeoutError):
        there = None
    if there is None:
        return Submission(handle=await _stored(client, spec))
    record = there.record
    return Submission(handle=await client.watch(f"{record.tenant}/{record.job}"), before=record)


async def _stored(client: Client, spec: JobSpec) -> JobHandle:
    """Submit, however long that takes; say so when it takes long."""
    submitting = asyncio.ensure_future(client.submit(spec))
    try:
        if not (await asyncio.wait([submitting], timeout=VERDICT_S))[0]:
            output.note(f"{spec.name}: the server has not stored it yet; trying on, Ctrl-C gives up")
        return await submitting
    finally:
        submitting.cancel()


async def _follow(session: Session, submission: Submission, *, wait: bool) -> Submitted:
    handle = submission.handle
    result = _as_it_was(submission.before) if submission.before else await _verdict(handle)
    _tell(session, result, _what_is_there(submission.before) if submission.before else _how_it_is(result))
    if not wait or _failed(result, wait=False):
        return result
    if submission.before is None or not submission.before.state.terminal:
        result = await _end(handle, existed=result.existed)
        _tell(session, result, _how_it_is(result))
    return result


def _as_it_was(record: JobRecord) -> Submitted:
    return Submitted(
        tenant=record.tenant,
        job=record.job,
        submission_id=record.submission_id,
        state=record.state.value,
        reason=record.reason,
        attempt=record.attempt,
        exit_code=record.last_exit.code if record.last_exit and record.state.terminal else None,
        existed=True,
    )


def _what_is_there(record: JobRecord) -> str:
    from muxflow.contracts import JobState

    how = record.state.value
    if record.state.terminal:
        how += f" {age(record.changed_ns)} ago"
    if record.state is JobState.FAILED:
        how += f" ({record.reason})"
    return f"already there: {how}; nothing was started"


def _how_it_is(result: Submitted) -> str:
    return f"{result.state}: {result.reason}" if result.reason else result.state


async def _verdict(handle: JobHandle) -> Submitted:
    from muxflow.client import Rejected

    try:
        async with asyncio.timeout(VERDICT_S):
            await handle.accepted()
    except TimeoutError:
        return _result(handle, "recorded", "no scheduler has answered yet; the job waits for one")
    except Rejected as error:
        return _result(handle, "rejected", str(error))
    return _result(handle, "accepted")


async def _end(handle: JobHandle, *, existed: bool) -> Submitted:
    from muxflow.client import Rejected

    telling = asyncio.create_task(_tell_why_it_waits(handle))
    try:
        outcome = await handle.outcome()
    except Rejected as error:
        return _result(handle, "rejected", str(error))
    finally:
        telling.cancel()
    return msgspec.structs.replace(
        _result(handle, outcome.state.value, outcome.reason),
        attempt=outcome.attempt,
        exit_code=outcome.exit.code if outcome.exit else None,
        existed=existed,
    )


async def _tell_why_it_waits(handle: JobHandle) -> None:
    """Say why a job is not running yet, once, and again when the reason has become another one."""
    from muxflow.client import ClientError

    told = None
    await asyncio.sleep(_WAITS_AFTER_S)
    while True:
        try:
            waiting = (await handle.status()).waiting
        except ClientError:
            waiting = None
        if waiting and (kind := re.sub(r"[\d.]+", "", waiting)) != told:
            told = kind
            output.note(f"{handle.tenant}/{handle.job} waits: {waiting}")
        await asyncio.sleep(_WAITS_EVERY_S)


def _tell_what_goes_on(submissions: list[Submission]) -> None:
    for each in submissions:
        if not each.handle.ended and not (each.before and each.before.state.terminal):
            name = f"{each.handle.tenant}/{each.handle.job}"
            output.note(f"{name} stays in the queue, or runs on; to end it: muxflow cancel {name}")


def _result(handle: JobHandle, state: str, reason: str = "") -> Submitted:
    return Submitted(
        tenant=handle.tenant, job=handle.job, submission_id=handle.submission_id or "", state=state, reason=reason
    )


def _failed(result: Submitted, *, wait: bool) -> bool:
    """Whether there is something to fail for: a job that had failed before is no news unless it is waited for."""
    return result.state in ("rejected", "failed", "cancelled") and (wait or not result.existed)


def _tell(session: Session, result: Submitted, what: str) -> None:
    if not session.as_json:
        output.line(f"{result.tenant}/{result.job}: {what}")
