"""The whole command line: our commands, and those that other rooms add by entry point."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Final

import typer

from muxflow.cli import (
    alerts,
    dead,
    device,
    devices,
    events,
    evict,
    explain,
    jobs,
    nodes,
    online,
    predict,
    profiles,
    queue,
    submit,
    up,
)
from muxflow.cli.top import command as top

PLUGINS: Final = "muxflow.commands"
"""Entry points of this group are functions that take the `typer.Typer` and add commands to it."""

HELP: Final = """\
Run best-effort offline jobs on GPUs that serve latency-critical online workloads.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 not connected.
"""


def build() -> typer.Typer:
    """Make the application."""
    app = typer.Typer(
        name="muxflow",
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=HELP)(_root)
    people = (up, submit, jobs, queue, evict, nodes, devices, explain, top, device, online, profiles, predict)
    for module in (*people, events, alerts, dead):
        module.add_to(app)
    for plugin in sorted(entry_points(group=PLUGINS), key=lambda point: point.name):
        _add(plugin, app)
    return app


def _add(plugin: EntryPoint, app: typer.Typer) -> None:
    """Add one plug-in's commands; one that is broken costs a line, not the command line."""
    try:
        plugin.load()(app)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it
        typer.echo(f"muxflow: commands of {plugin.value} are left out: {error}", err=True)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"muxflow {version('muxflow')}")
        raise typer.Exit


def _root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Hold the options that come before a command."""
