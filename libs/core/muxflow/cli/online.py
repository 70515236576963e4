"""``online``: which online workloads this machine's monitor protects, and how it tells their processes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from muxflow.cli import gpus, output
from muxflow.cli.command import USAGE, CommandError, Session, command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from muxflow.contracts import DeviceSummary

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the online workload.")]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="File that the node's monitor reads: online.toml in its state_dir.",
        show_default="that of `muxflow up`",
    ),
]
Table = dict[str, dict[str, Any]]
"""Name of the workload to its keys ``gpu``, ``match`` and ``latency_target_ms``."""

_ROW: Final = re.compile(r"[^\x00-\x1f\x7f]+")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    group = typer.Typer(
        name="online",
        help="Online workloads on this machine's GPUs.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
    )
    command(group, "muxflow online add chat --gpu 0 --match 'serve.py.*--model chat' --latency-target-ms 50")(add)
    command(group, "muxflow online list", name="list")(list_workloads)
    command(group, "muxflow online remove chat")(remove)
    app.add_typer(group)


async def add(
    session: Session,
    *,
    name: NameArgument,
    gpu: Annotated[str, typer.Option(metavar="DEVICE", help="GPU of this machine: index, UUID, or 'T4 #0'.")],
    match: Annotated[str, typer.Option(metavar="REGEX", help="What the command lines of its processes have in them.")],
    latency_target_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Latency that was promised, in milliseconds.")
    ] = None,
    file: FileOption = None,
) -> None:
    """Tell this machine's monitor of an online workload, or tell it anew; it obeys at once.

    Processes on a GPU that are no job's are protected without this too. What is told here gives them a name, and a
    target against which their own reports of their latency are held.
    """
    from muxflow.discovery import machine

    _check(name, match)
    node = machine(directory=session.state_dir).node if file is None else None
    async with session.connect() as client:
        devices = [device for device in await client.devices() if node in (None, device.node)]
    found = gpus.meant(gpu, devices)
    if not found.watched:
        raise CommandError(f"{gpus.place(found)} is only declared: no monitor watches it")
    entry: dict[str, Any] = {"gpu": found.gpu.uuid, "match": match}
    if latency_target_ms is not None:
        entry["latency_target_ms"] = latency_target_ms
    path = _file(session, file)
    table = _read(path)
    taken = [other for other, each in table.items() if other != name and each.get("gpu") in _names_of(found)]
    if taken:
        raise CommandError(f"{gpus.place(found)} has {taken[0]} already, and a GPU has one online workload")
    _write(path, {**table, name: entry})
    if session.as_json:
        output.json({name: entry})
    else:
        output.line(f"{name} is protected on {gpus.place(found)}: {path}")


async def list_workloads(session: Session, *, file: FileOption = None) -> None:
    """List the online workloads that this machine's monitor was told of by these commands."""
    table = _read(_file(session, file))
    if session.as_json:
        output.json(table)
    elif not table:
        output.line("none")
    else:
        columns = ["NAME", "GPU", "TARGET", "MATCH"]
        output.table(columns, [_row(name, entry) for name, entry in sorted(table.items())], wide="MATCH")


async def remove(session: Session, *, name: NameArgument, file: FileOption = None) -> None:
    """Take back what `online add` told of a workload. Its processes are protected as unknown ones from then on."""
    path = _file(session, file)
    table = _read(path)
    if name not in table:
        there = ", ".join(sorted(table)) or "none"
        raise CommandError(f"there is no online workload {name!r} in {path}; there is {there}")
    del table[name]
    _write(path, table)
    if session.as_json:
        output.json({"name": name, "removed": True})
    else:
        output.line(f"{name} is removed from {path}")


def _check(name: str, match: str) -> None:
    if not _ROW.fullmatch(name):
        raise CommandError("NAME: an online workload has a name in one line", USAGE)
    try:
        re.compile(match)
    except re.error as error:
        raise CommandError(f"--match: {match!r} is no regular expression: {error}", USAGE) from None


def _names_of(device: DeviceSummary) -> tuple[object, ...]:
    """How a table may name a GPU."""
    return (device.gpu.uuid, device.gpu.index, str(device.gpu.index))


def _file(session: Session, given: Path | None) -> Path:
    from muxflow.discovery import online_file

    return given or online_file(directory=session.state_dir)


def _read(path: Path) -> Table:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: not valid TOML: {error}") from None
    strays = [name for name, entry in table.items() if not isinstance(entry, dict)]
    if strays:
        raise CommandError(f"{path}: {strays[0]}: a workload is a table, such as [{strays[0]}]")
    return table


def _write(path: Path, table: Mapping[str, Any]) -> None:
    from muxflow import toml
    from muxflow.supervisor.state import write_private

    if not path.parent.is_dir():
        raise CommandError(f"{path.parent}: no such directory: no monitor has run there")
    write_private(path, toml.dump(table).encode())


def _row(name: str, entry: Mapping[str, Any]) -> list[output.Cell]:
    target = entry.get("latency_target_ms")
    return [name, str(entry.get("gpu", "-")), f"{target:g} ms" if target else "-", str(entry.get("match", "-"))]
