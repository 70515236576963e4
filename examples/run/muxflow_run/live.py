"""Shows a run: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from muxflow_run.board import Board, Row

_FRAME_S: Final = 0.5
_LINE_S: Final = 5.0
_LOOK_S: Final = 0.2
_STYLES: Final = {"healthy": "green", "unhealthy": "yellow", "overlimit": "red", "disabled": "red", "init": "cyan"}


@contextlib.asynccontextmanager
async def shown(board: Board, console: Console) -> AsyncIterator[None]:
    """Show the run while the block lasts."""
    show = _live if console.is_terminal else _lines
    showing = asyncio.create_task(show(board, console))
    try:
        yield
    finally:
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing


async def _live(board: Board, console: Console) -> None:
    with Live(frame(board), console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(_FRAME_S)
            live.update(frame(board), refresh=True)


async def _lines(board: Board, console: Console) -> None:
    """Print each event once, and every five seconds how it is."""
    printed, spoken_s = 0, board.passed_s
    while True:
        fresh = min(board.told - printed, len(board.events))
        for words in list(board.events)[len(board.events) - fresh :]:
            console.print(Text(words), soft_wrap=True)
        printed = board.told
        if board.passed_s - spoken_s >= _LINE_S:
            spoken_s = board.passed_s
            console.print(Text(f"{board.passed_s:6.1f} s  {board.phase:<11}  {summary(board)}"), soft_wrap=True)
        await asyncio.sleep(_LOOK_S)


def summary(board: Board) -> str:
    """Say in one line how everything is."""
    told = []
    for row in board.rows.values():
        parts = [row.gpu.name]
        if row.gpu.service is not None:
            parts.append(f"{row.gpu.service.name} p99 {_ms(row.p99_ms)}")
        if row.job is not None:
            parts.append(row.job)
        if row.sample is not None:
            parts.append(f"{_pct(row.sample.utilization_pct)} busy")
        told.append(" ".join(parts))
    return " | ".join(told)


def frame(board: Board) -> Group:
    """Draw everything."""
    left = "" if board.left_s is None else f", {board.left_s:.0f} s left"
    head = Text.assemble(("MuxFlow", "bold"), f"  {board.phase}: {board.step}{left}  ({board.passed_s:.0f} s)")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("GPU")
    table.add_column("STATE")
    table.add_column("ONLINE")
    for name in ("P50 ms", "P99 ms", "LOST"):
        table.add_column(name, justify="right")
    table.add_column("OFFLINE")
    for name in ("BUDGET", "BUSY", "SM", "MEMORY"):
        table.add_column(name, justify="right")
    for row in board.rows.values():
        table.add_row(*_cells(row))
    queue = Text(f"queue: {len(board.waiting)} wait, {len(board.done)} have ended", style="bright_black")
    return Group(head, table, queue, *(Text(words, overflow="ellipsis", no_wrap=True) for words in board.events))


def _cells(row: Row) -> list[str | Text]:
    sample = row.sample
    state = row.state or "-"
    served = row.gpu.service is not None
    budget = None if sample is None or sample.budget_permille is None else sample.budget_permille / 10
    used = None
    if sample is not None and sample.memory_used_bytes is not None and sample.memory_total_bytes:
        used = 100 * sample.memory_used_bytes / sample.memory_total_bytes
    return [
        row.gpu.name,
        Text(state, style=_STYLES.get(state, "")),
        row.gpu.service.name if row.gpu.service is not None else "-",
        _ms(row.p50_ms) if served else "-",
        _ms(row.p99_ms) if served else "-",
        Text(str(row.lost), style="red" if row.lost else "") if served else "-",
        row.job or "-",
        _pct(budget),
        _pct(sample.utilization_pct if sample else None),
        _pct(sample.sm_activity_pct if sample else None),
        _pct(used),
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _pct(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}%"
