"""The job control: what the executor tells the processes of one job, and they obey."""

from __future__ import annotations

import os
from ctypes import sizeof
from pathlib import Path
from typing import Final, Self

import msgspec

from muxflow.contracts.event import Bytes
from muxflow_decisions.device.gate import Gate, JobPhase
from muxflow_device.native.library import library
from muxflow_device.pages import word
from muxflow_device.pages.errors import PageError
from muxflow_device.pages.file import READ_ONLY, WrittenPage, check, create, opened
from muxflow_device.pages.layout import ATTEMPT_BYTES, PageKind, RawControlPage
from muxflow_device.rundir import JobDirectory

_LOOKS: Final = 16


class JobOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a job, beside the gate of its device."""

    gate: Gate
    phase: JobPhase
    """Why the gate is as it is."""
    deadline_boottime_ns: int | None = None
    """When the phase ends, by CLOCK_BOOTTIME; None: when it is changed."""
    epoch: int = 0
    """How often the gate's state has changed, modulo 2³⁰."""


class JobLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt is given for its whole life."""

    gpu: str
    """UUID."""
    quota_bytes: Bytes | None
    """Device memory of all its processes, contexts included; None: no limit."""
    context_bytes: Bytes | None = None
    """What one context is charged until the driver tells; None: the driver is asked at once."""


class JobControlWriter:
    """The executor's hold on one job control. A page that is there is taken over as it is."""

    def __init__(self, directory: JobDirectory, limits: JobLimits, order: JobOrder) -> None:
        """Take the page over, or make it with this first order. Raises PageInUseError, PageError, OSError."""
        directory.create()
        first = RawControlPage(
            gate=word.pack(order.gate, order.epoch),
            phase=order.phase,
            deadline_boottime_ns=order.deadline_boottime_ns or 0,
            quota_bytes=limits.quota_bytes or 0,
            context_bytes=limits.context_bytes or 0,
            attempt=directory.name.encode()[: ATTEMPT_BYTES - 1],
        )
        create(directory.control_page, first, kind=PageKind.CONTROL, uuid=limits.gpu, mode=READ_ONLY, owner=None)
        self._library = library()
        self._page = WrittenPage(directory.control_page, PageKind.CONTROL, RawControlPage)

    @property
    def order(self) -> JobOrder:
        """What holds now."""
        return _order(self._page.content)

    def store(self, gate: Gate, phase: JobPhase, *, deadline_boottime_ns: int | None = None) -> None:
        """Let this hold from now on. Raises PageLostError, ValueError.

        The gate goes last: whoever sees it sees the phase it belongs to.
        """
        self._page.check()
        before, epoch = word.unpack(self._page.content.gate)
        epoch += before.state is not gate.state
        self._library.mux_store64s(self._page.address("deadline_boottime_ns"), deadline_boottime_ns or 0)
        self._library.mux_store32(self._page.address("phase"), phase)
        self._library.mux_store64(self._page.address("gate"), word.pack(gate, epoch))

    def close(self) -> None:
        """Leave the page, and what it says in force."""
        self._page.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JobControl(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a job control."""

    attempt: str
    """Name of the attempt's directory."""
    limits: JobLimits
    order: JobOrder

    @classmethod
    def read(cls, path: Path) -> Self:
        """Look at a page. Raises PageError when there is none that can be read, OSError."""
        with opened(path) as fd:
            header = check(fd, PageKind.CONTROL, path)
            raw = RawControlPage.from_buffer_copy(_settled(fd, path))
        limits = JobLimits(
            gpu=header.uuid.decode(errors="replace"),
            quota_bytes=raw.quota_bytes or None,
            context_bytes=raw.context_bytes or None,
        )
        if raw.phase not in JobPhase.__members__.values():
            raise PageError(f"{path} holds no phase {raw.phase}")
        return cls(attempt=raw.attempt.decode(errors="replace"), limits=limits, order=_order(raw))


def _settled(fd: int, path: Path) -> bytes:
    """Read until two looks agree: then no store fell into them."""
    before = b""
    for _ in range(_LOOKS):
        raw = os.pread(fd, sizeof(RawControlPage), 0)
        if len(raw) == sizeof(RawControlPage) and raw == before:
            return raw
        before = raw
    raise PageError(f"{path} never keeps still")


def _order(raw: RawControlPage) -> JobOrder:
    gate, epoch = word.unpack(raw.gate)
    return JobOrder(
        gate=gate,
        phase=JobPhase(raw.phase),
        deadline_boottime_ns=raw.deadline_boottime_ns or None,
        epoch=epoch,
    )
