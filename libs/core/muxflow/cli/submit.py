"""``submit``: hand in jobs, and wait for them if asked to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from muxflow.cli import output
from muxflow.cli.command import FAILURE, Session, command

if TYPE_CHECKING:
    from muxflow.client import Client, JobHandle
    from muxflow.contracts import JobSpec

VERDICT_S = 5.0
"""How long to wait for the scheduler's word on a submission that is already safe."""


class Submitted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one submission so far."""

    tenant: str
    job: str
    submission_id: str
    state: str
    """``recorded`` (safe, no scheduler has answered), ``accepted``, ``rejected``, or how the job ended."""
    reason: str = ""
    attempt: int | None = None
    exit_code: int | None = None

    @property
    def good(self) -> bool:
        return self.state in ("recorded", "accepted", "finished")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(
        app,
        "muxflow submit examples/hello.yaml --wait",
        "generate-jobs | muxflow submit -",
    )(submit)


async def submit(
    session: Session,
    *,
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Job files; '-' is standard input.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the jobs have ended; fail if one failed.")] = False,
) -> None:
    """Submit the jobs of job files. A job that is told as accepted will not be lost."""
    from muxflow import jobfile

    specs = [spec for file in files for spec in jobfile.load(file)]
    async with session.connect() as client:
        results = await asyncio.gather(*(_submit(client, session, spec, wait=wait) for spec in specs))
    if session.as_json:
        output.json(results)
    if not all(result.good for result in results):
        raise typer.Exit(FAILURE)


async def _submit(client: Client, session: Session, spec: JobSpec, *, wait: bool) -> Submitted:
    handle = await _stored(client, spec)
    result = await _verdict(handle)
    _tell(session, result)
    if wait and result.good:
        result = await _end(handle)
        _tell(session, result)
    return result


async def _stored(client: Client, spec: JobSpec) -> JobHandle:
    """Submit, however long that takes; say so when it takes long."""
    submitting = asyncio.ensure_future(client.submit(spec))
    if not (await asyncio.wait([submitting], timeout=VERDICT_S))[0]:
        output.notice(f"{spec.name}: the server has not stored it yet; trying on, Ctrl-C gives up")
    return await submitting


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


async def _end(handle: JobHandle) -> Submitted:
    from muxflow.client import Rejected

    try:
        outcome = await handle.outcome()
    except Rejected as error:
        return _result(handle, "rejected", str(error))
    return msgspec.structs.replace(
        _result(handle, outcome.state.value, outcome.reason),
        attempt=outcome.attempt,
        exit_code=outcome.exit.code if outcome.exit else None,
    )


def _result(handle: JobHandle, state: str, reason: str = "") -> Submitted:
    return Submitted(
        tenant=handle.tenant, job=handle.job, submission_id=handle.submission_id or "", state=state, reason=reason
    )


def _tell(session: Session, result: Submitted) -> None:
    if not session.as_json:
        output.line(f"{result.tenant}/{result.job}: {result.state}" + (f": {result.reason}" if result.reason else ""))
