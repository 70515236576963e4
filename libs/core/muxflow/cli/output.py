"""Printing: JSON for programs, tables for people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Cell: TypeAlias = "str | Text"

_STYLES: Final = {
    "running": "green",
    "finished": "bright_black",
    "failed": "red",
    "cancelled": "bright_black",
    "pending": "yellow",
    "stopping": "yellow",
    "lost": "red",
    "alive": "green",
}

_WIDE: Final = 10_000
"""Columns when nobody looks: a table that is piped somewhere is never cut."""


def json(value: Any) -> None:
    """Print one JSON value in one line."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def line(text: str) -> None:
    """Print one line for people, as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def notice(text: str) -> None:
    """Tell people something beside the output."""
    print(f"muxflow: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell people something beside the output proper, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def state(word: str) -> Text:
    """Colour the word for a state."""
    from rich.text import Text

    return Text(word, style=_STYLES.get(word, ""))


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, wide: str) -> None:
    """Print a table. On a terminal, the column `wide` wraps where space is short; the others never do."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, no_wrap=column != wide, overflow="fold" if column == wide else "ellipsis")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    _print(grid)


def fields(pairs: Sequence[tuple[str, Cell]]) -> None:
    """Print names and values, one pair per line."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, value if isinstance(value, Text) else Text(value))
    _print(grid)


def fitting(text: str) -> str:
    """Cut a line to the width of the terminal; nothing is cut when nobody looks."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _print(grid: Table) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(grid)
    for row in captured.get().splitlines():
        line(row.rstrip())
