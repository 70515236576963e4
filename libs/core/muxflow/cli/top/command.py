"""The command ``top``: what it asks and hears, and where it draws."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from muxflow.cli import output
from muxflow.cli.command import Session, command

if TYPE_CHECKING:
    from muxflow.cli.top.board import Board
    from muxflow.client import Client, Received

_FRAME_S: Final = 0.5
_PLAIN_FRAME_S: Final = 1.0
_ASK_S: Final = 1.0
_AGAIN_S: Final = 1.0
_WIDE: Final = 10_000
"""Columns of a frame that goes to no terminal: nothing is cut."""


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "muxflow top", "muxflow top --once", "watch -n 5 muxflow top --once")(top)


async def top(
    session: Session,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Show all GPUs live: who is served, which jobs have the rest, what happened in the last ten minutes; q ends it.

    BUDGET is the share of time that offline work may run, '-' while the GPU's state lets no job run; BUSY is how busy
    the whole GPU is. Where the output is no terminal, frames are printed one after the other, as they are with --json,
    one object each.
    """
    from muxflow.cli.top.board import Board

    board = Board()
    async with session.connect() as client:
        await _fill(board, client)
        if once:
            _print(board, as_json=session.as_json)
            return
        work = asyncio.gather(*(_again(board, each) for each in _sources(board, client)))
        try:
            if session.as_json or not sys.stdout.isatty():
                while True:
                    _print(board, as_json=session.as_json)
                    await asyncio.sleep(_PLAIN_FRAME_S)
            await _on_screen(board)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _on_screen(board: Board) -> None:
    from muxflow.cli.top import frame, screen

    await screen.show(
        lambda width, height: frame.lines(board, width=width, height=height, now_ns=time.time_ns()), every_s=_FRAME_S
    )


def _print(board: Board, *, as_json: bool) -> None:
    from muxflow.cli.top import frame

    now_ns = time.time_ns()
    if as_json:
        output.json(
            {
                "time_ns": now_ns,
                "devices": list(board.devices.values()),
                "running": board.running,
                "waiting": board.waiting,
                "recent": [each.alert for each in board.recent(now_ns)],
                "trouble": board.trouble or None,
            }
        )
        return
    for line in frame.lines(board, width=_WIDE, height=None, now_ns=now_ns):
        output.line(line.plain.rstrip())


async def _fill(board: Board, client: Client) -> None:
    """Learn how everything is. Raises what the client raises."""
    from muxflow.cli.top.board import RECENT_S

    board.place(await client.devices())
    await _count(board, client)
    async for received in client.alerts(since_s=RECENT_S, follow=False):
        board.tell(received.event, received.time_ns)


def _sources(board: Board, client: Client) -> tuple[Callable[[], Awaitable[None]], ...]:
    """Everything that keeps a board up to date; each runs until it fails."""
    from muxflow.cli.top.board import RECENT_S

    async def ask() -> None:
        while True:
            board.place(await client.devices(newest=False))
            await _count(board, client)
            board.trouble = ""
            await asyncio.sleep(_ASK_S)

    def hear(
        subject: str, take: Callable[[Received], None], *, since_s: float | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def follow() -> None:
            async for received in client.events(subject, since_s=since_s):
                take(received)

        return follow

    return (
        ask,
        hear("telemetry", lambda received: board.read(received.event)),
        hear("devices.state", lambda received: board.change(received.event)),
        # Read from the stream, so that none is missed while the connection is away; what is told twice is one line.
        hear("alerts", lambda received: board.tell(received.event, received.time_ns), since_s=RECENT_S),
    )


async def _again(board: Board, source: Callable[[], Awaitable[None]]) -> Any:
    """Run a source for ever: when it fails, people are told why, and it is begun anew."""
    from muxflow.client import ClientError

    while True:
        try:
            await source()
        except ClientError as error:
            board.trouble = f"{error}; what is shown may be old"
        await asyncio.sleep(_AGAIN_S)


async def _count(board: Board, client: Client) -> None:
    from muxflow.client import NotAllowed
    from muxflow.contracts import JobState

    on_gpus = (JobState.ASSIGNED, JobState.RUNNING, JobState.PROFILING, JobState.STOPPING)
    try:
        board.count(
            running=(await client.jobs(states=on_gpus, limit=1)).total,
            waiting=(await client.jobs(states=(JobState.PENDING,), limit=1)).total,
        )
    except NotAllowed:  # observers see devices, not jobs
        board.count(running=None, waiting=None)
