"""``dead``: messages that no service could handle, and sending them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muxflow.cli import output
from muxflow.cli.ages import age
from muxflow.cli.command import Session, command

if TYPE_CHECKING:
    from muxflow.client import DeadEntry

NumberArgument = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Number of the letter in `dead list`.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(
        name="dead", help="Messages that no service could handle.", no_args_is_help=True, rich_markup_mode="markdown"
    )
    command(group, "muxflow dead list", name="list")(list_letters)
    command(group, "muxflow dead show 7")(show)
    command(group, "muxflow dead replay 7")(replay)
    app.add_typer(group)


async def list_letters(session: Session) -> None:
    """List dead letters, oldest first."""
    async with session.connect() as client:
        entries = await client.dead_letters()
    if session.as_json:
        output.json(entries)
    elif not entries:
        output.line("no dead letters")
    else:
        output.table(
            ["NUMBER", "AGE", "SERVICE", "SUBJECT", "TRIES", "REASON"],
            [_row(entry) for entry in entries],
            wide="REASON",
        )


def _row(entry: DeadEntry) -> list[output.Cell]:
    letter = entry.letter
    subject = letter.subject.removeprefix("muxflow.")
    return [str(entry.number), age(entry.time_ns), letter.service, subject, str(letter.deliveries), letter.reason]


async def show(session: Session, *, number: NumberArgument) -> None:
    """Show one dead letter with its payload."""
    async with session.connect() as client:
        entry = await client.dead_letter(number)
    if session.as_json:
        output.json(entry)
        return
    letter = entry.letter
    output.fields(
        [
            ("number", str(entry.number)),
            ("service", letter.service),
            ("subject", letter.subject),
            ("reason", letter.reason),
            ("deliveries", str(letter.deliveries)),
            ("given up", f"{age(entry.time_ns)} ago"),
            ("kept in", f"{letter.stream} {letter.stream_sequence}" if letter.stream else "-"),
            *((f"header {name}", value) for name, value in letter.headers.items()),
            ("payload", letter.data.decode(errors="backslashreplace") or "(empty)"),
        ]
    )


async def replay(session: Session, *, number: NumberArgument) -> None:
    """Send the original message again, to the subject it came from."""
    async with session.connect() as client:
        entry = await client.replay(number)
    if session.as_json:
        output.json({"number": number, "subject": entry.letter.subject, "replayed": True})
    else:
        output.line(f"sent again to {entry.letter.subject}")
