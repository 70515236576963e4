"""``up``: the whole system on this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muxflow.cli import output
from muxflow.cli.ages import duration
from muxflow.cli.command import USAGE, CommandError, JsonOption, StateDirOption, end_with, epilog

if TYPE_CHECKING:
    from muxflow.supervisor.hardware import Hardware
    from muxflow.supervisor.installation import Plan
    from muxflow.supervisor.reports import Ready, Report

_FOLLOW_S = 0.2


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    examples = epilog("muxflow up --simulate T4 --simulate A100", "muxflow up --gpu T4:16GiB --set lease.node_s=30")
    app.command("up", epilog=examples)(up)


def up(
    *,
    real: Annotated[bool, typer.Option("--real", help="Use the GPUs that NVML finds.")] = False,
    simulate: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Simulate a GPU: T4, A100, H200; once for each.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:MEMORY", help="Declare a GPU that need not exist, such as T4:16GiB; once for each."),
    ] = None,
    gpus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Declare GPUs by a TOML file with [[gpu]] uuid, kind, memory.")
    ] = None,
    node: Annotated[str | None, typer.Option(help="Name of this node.", show_default="the host's name")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the server.", show_default="that of the last time, or a free one"),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting of the services."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what the services log.")] = False,
    as_json: JsonOption = False,
    state_dir: StateDirOption = None,
) -> None:
    """Run the whole system on this machine, until Ctrl-C.

    Starts a NATS server (on loopback only), the scheduler, an executor, and for GPUs that are real or simulated MPS, a
    monitor and an evictor; restarts what dies. Ctrl-C stops running jobs too; their queue and records stay in the state
    directory for the next time.

    Without options for them, the GPUs are as the last time; the first time, those that NVML finds.
    """

    def run() -> None:
        from muxflow.discovery import state_dir as default_state_dir
        from muxflow.supervisor.installation import Plan

        name = node or socket.gethostname()
        plan = Plan(
            state_dir=state_dir or default_state_dir(),
            node=name,
            hardware=_hardware(real=real, kinds=simulate or [], wishes=gpu or [], file=gpus, node=name),
            port=port,
            overrides=_overrides(override or []),
        )
        asyncio.run(_run(plan, tell=_while_heard(output.json if as_json else _tell), verbose=verbose))

    end_with(run)


def _hardware(*, real: bool, kinds: list[str], wishes: list[str], file: Path | None, node: str) -> Hardware | None:
    from muxflow import inventory
    from muxflow.supervisor.hardware import Declared, Real, Simulated

    if sum(map(bool, (real, kinds, wishes, file))) > 1:
        raise CommandError("give one of --real, --simulate, --gpu and --gpus", USAGE)
    try:
        if wishes:
            return Declared(inventory.declare(tuple(wishes), node))
        if file:
            return Declared(inventory.load(file))
    except inventory.InventoryError as error:
        raise CommandError(str(error), USAGE) from None
    if kinds:
        return Simulated(tuple(kinds))
    return Real() if real else None


def _overrides(texts: list[str]) -> tuple[tuple[tuple[str, ...], Any], ...]:
    from muxflow import toml

    try:
        return tuple(toml.parse_assignment(text) for text in texts)
    except ValueError as error:
        raise CommandError(f"--set {error}", USAGE) from None


def _while_heard(tell: Callable[[Report], None]) -> Callable[[Report], None]:
    """Go on, and stop when told to, also when nobody reads the output any more."""

    def told(report: Report) -> None:
        try:
            tell(report)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return told


async def _run(plan: Plan, *, tell: Callable[[Report], None], verbose: bool) -> None:
    from muxflow import logs
    from muxflow.settings import LogSettings
    from muxflow.supervisor.installation import NoGpusError
    from muxflow.supervisor.machine import Machine

    logs.configure(LogSettings(level="warning", format="console"), service="up")
    following = asyncio.create_task(_follow(plan.state_dir / "logs")) if verbose else None
    try:
        await Machine(plan, tell).run()
    except NoGpusError as error:
        raise CommandError(str(error)) from None
    if following:
        following.cancel()


async def _follow(logs: Path) -> None:
    """Show what is written to the log files from now on."""
    from muxflow.supervisor.journal import Follower
    from muxflow.supervisor.server import NAME
    from muxflow.supervisor.services import SERVICES

    followers = {name: Follower(logs / f"{name}.log") for name in (NAME, *(entry.name for entry in SERVICES))}
    while True:
        for name, follower in followers.items():
            for line in follower.lines():
                output.line(f"{name:>9} | {line}")
        await asyncio.sleep(_FOLLOW_S)


def _tell(report: Report) -> None:
    from muxflow.supervisor import reports

    match report:
        case reports.Started() if report.starts == 1:
            output.line(f"  {report.name:<10} pid {report.pid:<8}{f' port {report.port}' if report.port else ''}")
        case reports.Started():
            port = f", port {report.port}" if report.port else ""
            output.line(f"{report.name} runs again: pid {report.pid}{port}")
        case reports.Ended():
            words = f" ({report.last_words})" if report.last_words else ""
            output.line(f"{report.name} {report.how}{words}; starting it again in {duration(report.restart_in_s)}")
        case reports.Stuck():
            output.line(f"{report.name} cannot work: {report.reason}; free some space, then it goes on by itself")
        case reports.Restarting():
            output.line(f"starting {report.name} again: {report.reason}")
        case reports.Waiting():
            output.line("still waiting: " + "; ".join(f"{name}: {why}" for name, why in report.reasons.items()))
        case reports.Ready():
            _tell_ready(report)
        case reports.Stopping() if report.hurried:
            output.line("hurrying: jobs that still run end when their node's lease does")
        case reports.Stopping():
            output.line("stopping: running jobs first; Ctrl-C again does not wait for them")
        case _:
            output.line("stopped")


def _tell_ready(report: Ready) -> None:
    watched = "" if report.watched else " (declared: nothing watches them)"
    output.line(
        f"  node       {report.node}: {', '.join(report.gpus)}{watched}\n"
        f"  server     {report.server}\n"
        f"  state      {report.state_dir}\n"
        f"  logs       {report.logs}\n"
        f"ready in {duration(report.seconds)}\n"
        "\n"
        "Next, in another terminal:\n"
        "  muxflow submit examples/hello.yaml --wait\n"
        "  muxflow jobs\n"
        f"  muxflow {'top' if report.watched else 'events --follow'}\n"
        "Ctrl-C here stops everything."
    )
