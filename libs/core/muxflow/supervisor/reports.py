"""What a supervisor tells while it works: data, for people and for programs."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    """Base of the reports."""


class Started(Report, frozen=True, kw_only=True):
    """A program was started."""

    name: str
    pid: int
    port: int
    """0 for one that listens on no port."""
    starts: int
    """1 for the first start."""


class Ended(Report, frozen=True, kw_only=True):
    """A program ended by itself and will be started again."""

    name: str
    how: str
    last_words: str
    """Last line of its log, if that is a warning or an error and nobody killed it; else empty."""
    restart_in_s: float


class Stuck(Report, frozen=True, kw_only=True):
    """A program runs and cannot work; it is started again when that helps."""

    name: str
    reason: str


class Restarting(Report, frozen=True, kw_only=True):
    """A program is ended, to be started again at once."""

    name: str
    reason: str


class Waiting(Report, frozen=True, kw_only=True):
    """The machine is not ready yet."""

    reasons: dict[str, str]
    """Name of the program to what it lacks."""


class Ready(Report, frozen=True, kw_only=True):
    """Everything works."""

    seconds: float
    """Since the supervisor began."""
    state_dir: str
    server: str
    node: str
    gpus: tuple[str, ...]
    watched: bool
    """Whether a monitor protects the GPUs; declared ones it does not."""
    pids: dict[str, int]
    ports: dict[str, int]
    logs: str


class Stopping(Report, frozen=True, kw_only=True):
    """A signal came."""

    signal: str
    hurried: bool
    """Whether it was not the first one."""


class Stopped(Report, frozen=True, kw_only=True):
    """Nothing of it runs any more."""
