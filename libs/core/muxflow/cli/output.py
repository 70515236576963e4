"""Printing: JSON for programs, tables for people."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Cell: TypeAlias = "str | Text"

_STYLES: Final = {
    "running": "green",
    "profiling": "green",
    "finished": "bright_black",
    "failed": "red",
    "cancelled": "bright_black",
    "pending": "yellow",
    "stopping": "yellow",
    "lost": "red",
    "alive": "green",
    "init": "yellow",
    "healthy": "green",
    "unhealthy": "yellow",
    "overlimit": "red",
    "disabled": "bright_black",
    "unwatched": "bright_black",
}

_GAP: Final = 2
_READABLE: Final = 24
"""A column of text that is narrower than this is hard to read."""

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


def note(text: str) -> None:
    """Tell people something beside the output proper, on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def state(word: str) -> Text:
    """Colour the word for a state."""
    from rich.text import Text

    return Text(word, style=style_of(word))


def style_of(word: str) -> str:
    """Give the colour of a state; none for words that are no states."""
    return _STYLES.get(word, "")


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, wide: str) -> None:
    """Print a table; nothing is cut, and words stay whole.

    On a terminal, the column `wide`, the last one, wraps where space is short. Where there is too little for that, its
    cells stand below their rows.
    """
    *others, last = zip(*([str(cell) for cell in row] for row in (columns, *rows)), strict=True)
    room = _width() - sum(max(map(len, column)) + _GAP for column in others)
    longest_word = max(len(word) for cell in last for word in (*cell.split(), ""))
    if columns[-1] == wide and room < max(longest_word, _READABLE) and room < max(map(len, last)):
        lines = _lines(_grid(columns[:-1], [row[:-1] for row in rows]), _WIDE)
        for text, below in zip(lines, ("", *last[1:]), strict=True):
            line(text)
            for piece in textwrap.wrap(
                "" if below == "-" else below, _width() - 4, break_long_words=False, break_on_hyphens=False
            ):
                line(f"    {piece}")
    else:
        for text in _lines(_grid(columns, rows), _width()):
            line(text)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, _GAP // 2))
    for column in columns:
        grid.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return grid


def fields(pairs: Sequence[tuple[str, Cell]]) -> None:
    """Print names and values, one pair per line."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, value if isinstance(value, Text) else Text(value))
    for text in _lines(grid, _width()):
        line(text)


def fitting(text: str) -> str:
    """Cut a line to the width of the terminal; nothing is cut when nobody looks."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE


def _lines(grid: Table, width: int) -> list[str]:
    from rich.console import Console

    # Without a height, rich takes a dumb terminal to have 80 columns.
    console = Console(width=width, height=_WIDE, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(grid)
    return [row.rstrip() for row in captured.get().splitlines()]
