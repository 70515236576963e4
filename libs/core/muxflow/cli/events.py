"""``events``: what happens on the bus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from muxflow.cli import output
from muxflow.cli.ages import age, duration, parse_duration
from muxflow.cli.command import Session, command

if TYPE_CHECKING:
    from muxflow.client import Received

HISTORY_S = 3600.0

FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on with every new one, until Ctrl-C.")]


def _since(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def since_option(default: str) -> Any:
    """Make the option ``--since`` of a command that says in its own words where it begins without."""
    return typer.Option(
        parser=_since, metavar="DURATION", help=f"Begin this long ago: 90s, 15m, 1h, 7d. Default: {default}."
    )


SinceOption = Annotated[float | None, since_option("1h, or now with --follow")]


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow events jobs --follow", "muxflow events runs.exited --since 15m --json")(events)


async def events(
    session: Session,
    *,
    subject: Annotated[
        str, typer.Argument(metavar="SUBJECT", help="Begin of the subject: 'jobs', 'runs.exited', 'decisions.node-1'.")
    ] = "",
    follow: FollowOption = False,
    since: SinceOption = None,
) -> None:
    """Print events, oldest first."""
    history_s = since if since is not None or follow else HISTORY_S
    seen = False
    async with session.connect() as client:
        async for received in client.events(subject, since_s=history_s, follow=follow):
            seen = True
            if session.as_json:
                output.json(received)
            else:
                output.line(_line(received, clock=follow))
    if not seen and not session.as_json:
        output.line(f"none in the last {duration(history_s or 0)}")


def when(received: Received, *, clock: bool) -> str:
    """Say when something happened: by the clock, or how long ago."""
    return time.strftime("%H:%M:%S", time.localtime(received.time_ns / 1e9)) if clock else age(received.time_ns)


def _line(received: Received, *, clock: bool) -> str:
    names = "/".join(received.names.values())
    return output.fitting(
        f"{when(received, clock=clock):>8}  {received.kind:<16}  {names}  {_details(received)}".rstrip()
    )


def _details(received: Received) -> str:
    """Say what the subject does not say, without what every event has, and without what is not known."""
    fields = msgspec.to_builtins(received.event)
    told = {"id", "source", "time_ns", *received.names}
    parts = (f"{key}={_value(value)}" for key, value in fields.items() if key not in told and value not in (None, ""))
    return " ".join(parts)


def _value(value: object) -> str:
    return msgspec.json.encode(_known(value)).decode()


def _known(value: object) -> object:
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None}
    return [_known(inner) for inner in value] if isinstance(value, list) else value
