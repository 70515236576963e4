"""The terminal while `top` runs: a screen of its own, one key, and everything as before at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)
_QUIT: Final = b"qQ"

Draw = Callable[[int, int], list[Text]]
"""Lines of one frame, of at most this width and height."""


async def show(draw: Draw, *, every_s: float) -> None:
    """Draw frames until somebody presses q, or a signal ends it; a new size is drawn at once."""
    console = Console(highlight=False, markup=False, emoji=False)
    ended, changed = asyncio.Event(), asyncio.Event()

    def frame() -> Group:
        return Group(*draw(console.width, console.height))

    with (
        _keys(ended),
        _signals(ended, changed),
        Live(frame(), console=console, screen=True, auto_refresh=False) as live,
    ):
        while not ended.is_set():
            live.update(frame(), refresh=True)
            await _either(ended, changed, every_s)
            changed.clear()


async def _either(one: asyncio.Event, other: asyncio.Event, timeout_s: float) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in (one, other)]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


@contextmanager
def _signals(ended: asyncio.Event, changed: asyncio.Event) -> Iterator[None]:
    """Let the terminal be put right before a signal ends the process. Ctrl-C is asyncio's, which does the same."""
    loop = asyncio.get_running_loop()
    for number in _ENDS:
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        yield
    finally:
        for number in (*_ENDS, signal.SIGWINCH):
            loop.remove_signal_handler(number)


@contextmanager
def _keys(ended: asyncio.Event) -> Iterator[None]:
    """Hear single keys without showing them, if anybody has a keyboard here."""
    if not sys.stdin.isatty():
        yield
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def pressed() -> None:
        keys = os.read(keyboard, 1024)
        if not keys:  # the terminal is gone
            loop.remove_reader(keyboard)
        if not keys or any(key in _QUIT for key in keys):
            ended.set()

    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
