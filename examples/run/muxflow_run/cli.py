"""The command line of a run."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from muxflow.client import ClientError
from muxflow_run import compare, host, machine, page, phase, plan, report, summary, verdicts
from muxflow_run.board import Board
from muxflow_run.course import PHASES, Course, state_dirs
from muxflow_run.live import shown
from muxflow_run.load import LoadError
from muxflow_run.machine import MachineError
from muxflow_run.queue import QueueError
from muxflow_run.stage import StageError

FIXED_SM_PCT: Final = 50
"""With DYNAMIC_SM=off every job gets this share of the SMs, whatever the online side needs."""
_GONE_S: Final = 15.0
_WIDE: Final = 140
"""Columns of what is printed elsewhere than on a terminal."""
_STARVED_PCT: Final = 40.0
"""Beyond it latencies say more of the machine's cores than of its GPUs."""
_FAILURES: Final = (MachineError, LoadError, QueueError, StageError, ClientError, OSError)
_EXAMPLES: Final = """\
examples:
  make run
  make run MATCHING=random
  make run RUN_ARGS="--seconds 10"
  python examples/run --prediction off --out out/no-prediction
  python examples/run --compare out/run.json out/no-prediction/run.json
"""


def main() -> None:
    """Run, and exit: 0 when the run itself worked, 1 when not, 2 for wrong arguments, 130 after Ctrl-C."""
    options = parsed(sys.argv[1:])
    if options.compare:
        try:
            _console().print(compare.table(options.compare))
        except (OSError, msgspec.DecodeError) as error:
            sys.exit(f"error: {error}")
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)  # rather now than after three minutes
        sys.exit(_run(options))
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # when everything has ended, and figures are made
        sys.exit(130)


def parsed(words: list[str]) -> argparse.Namespace:
    """Read the command line; what is wrong with it ends the program."""
    parser = argparse.ArgumentParser(
        prog="python examples/run",
        description="Run the whole of MuxFlow on this machine, measure it, and write run.json and run.html.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=plan.WINDOW_S,
        help="length of each phase's measured window (default: %(default)g)",
    )
    parser.add_argument(
        "--gpus", type=int, choices=range(2, len(plan.KINDS) + 1), help="simulated GPUs (default: 4)", metavar="2..4"
    )
    parser.add_argument("--simulate", action="store_true", help="simulate GPUs although this machine has some")
    parser.add_argument(
        "--matching",
        choices=("predicted", "memory", "random"),
        default="predicted",
        help="how jobs are matched to GPUs",
    )
    parser.add_argument("--prediction", choices=("on", "off"), default="on", help="whether speeds are predicted")
    parser.add_argument(
        "--dynamic-sm",
        choices=("on", "off"),
        default="on",
        help=f"whether a job's share of the SMs follows the online side; off: {FIXED_SM_PCT}%%",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting, as `muxflow up` does"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="directory for what is written (default: out)")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="RUN.JSON", help="only compare runs of before")
    return parser.parse_args(words)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 2 <= seconds <= 600:
        raise argparse.ArgumentTypeError("2 to 600")
    return seconds


def overrides(options: argparse.Namespace) -> tuple[str, ...]:
    """Settings that carry out what is left out or done differently in this run."""
    found = [] if options.matching == "predicted" else [f"scheduler.matching.weights={options.matching}"]
    if options.prediction == "off":
        found.append("scheduler.prediction=false")
    if options.dynamic_sm == "off":
        found.append(f"scheduler.sm_share.fixed_pct={FIXED_SM_PCT}")
    return (*found, *options.set)


def _run(options: argparse.Namespace) -> int:
    """Make one run."""
    console = _console()
    root = Path(tempfile.mkdtemp(prefix="muxflow-run-"))
    wanted = _plan(options)
    board = Board(wanted)
    course = Course(wanted, board, root, _arguments(wanted, options))
    began_s = time.monotonic()
    code = 0
    try:
        asyncio.run(_interruptible(course, board, console, root))
    except asyncio.CancelledError:
        console.print("stopped")
        code = 130
    except _FAILURES as error:
        console.print(f"error: {error}", style="red", markup=False)
        code = 1
    finally:
        leftover = machine.remove(root, state_dirs(root))
    if code:
        return code
    course.troubles += [f"left in shared memory: {name}" for name in leftover]
    return _write(options, wanted, course, console, time.monotonic() - began_s)


def _console() -> Console:
    """The terminal, or wide enough lines."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def _plan(options: argparse.Namespace) -> plan.Plan:
    found = () if options.simulate or options.gpus else plan.real_kinds()
    kinds = found or plan.KINDS[len(plan.KINDS) - (options.gpus or len(plan.KINDS)) :]
    return plan.plan(kinds, window_s=options.seconds, simulated=not found)


def _arguments(wanted: plan.Plan, options: argparse.Namespace) -> tuple[str, ...]:
    """What `muxflow up` is told."""
    hardware = [word for gpu in wanted.gpus for word in ("--simulate", gpu.kind)] if wanted.simulated else ["--real"]
    named = [f"monitor.online.{service.name}.gpu={gpu.index}" for gpu, service in wanted.served]
    named += [f"monitor.online.{service.name}.match=-{service.name}\\.jsonl" for _, service in wanted.served]
    return (*hardware, *(word for given in (*named, *overrides(options)) for word in ("--set", given)))


async def _interruptible(course: Course, board: Board, console: Console, root: Path) -> None:
    """Run until the end, or until Ctrl-C: the first one stops everything in order, the second one kills it."""
    running = asyncio.current_task()
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1 and running is not None:
            board.tell("stopping; Ctrl-C again kills everything at once")
            running.cancel()
            return
        machine.kill(machine.left(str(root)))
        machine.remove(root, state_dirs(root))
        os._exit(130)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    async with shown(board, console):
        try:
            await course.run()
        finally:
            for pid, command in (await machine.gone(str(root), _GONE_S)).items():
                course.troubles.append(f"left running, and killed: {pid} {Path(command.split()[0]).name}")


def _write(options: argparse.Namespace, wanted: plan.Plan, course: Course, console: Console, seconds: float) -> int:
    """Make the figures and write them down."""
    alone = course.observations[PHASES[0]]
    phases = {name: phase.figures(course.observations[name], None if name == PHASES[0] else alone) for name in PHASES}
    found = verdicts.figures(phases)
    made = report.Report(
        simulated=wanted.simulated,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(options),
        versions=_versions(),
        machine=host.describe(),
        settings=report.Settings(
            matching=options.matching,
            prediction=options.prediction,
            dynamic_sm=options.dynamic_sm,
            window_s=wanted.window_s,
            time_scale=wanted.time_scale,
            seed=wanted.seed,
            gpus=tuple(gpu.kind for gpu in wanted.gpus),
            overrides=overrides(options),
        ),
        seconds=round(seconds, 1),
        figures=found,
        verdicts=verdicts.verdicts(found),
        phases=phases,
        troubles=(*course.troubles, *_starved(phases)),
    )
    (options.out / "run.json").write_bytes(report.encode(made))
    (options.out / "run.html").write_text(page.render(made))
    summary.show(made, console)
    console.print(f"\n{options.out / 'run.json'}\n{options.out / 'run.html'}")
    return 0


def _versions() -> dict[str, str]:
    """Of MuxFlow, and of what its figures depend on most."""
    found = {}
    for name in ("muxflow", "nats-py", "ortools", "lightgbm"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _starved(phases: dict[str, report.PhaseFigures]) -> list[str]:
    """Say in which phases the machine was too busy for its figures to say much."""
    return [
        f"{name}: for {each.host.starved_pct:.0f}% of the time something had to wait for a core (this run used "
        f"{each.host.own_cpu_pct:.0f}%, all together {each.host.cpu_pct:.0f}%): latencies have that in them"
        for name, each in phases.items()
        if each.host.starved_pct is not None and each.host.starved_pct > _STARVED_PCT
    ]


def _command(options: argparse.Namespace) -> str:
    """How to make this run again; where it is written is left out."""
    words = ["python", "examples/run", "--seconds", f"{options.seconds:g}"]
    words += ["--gpus", str(options.gpus)] if options.gpus else []
    words += ["--simulate"] if options.simulate else []
    words += ["--matching", options.matching, "--prediction", options.prediction, "--dynamic-sm", options.dynamic_sm]
    words += [word for given in options.set for word in ("--set", given)]
    return shlex.join(words)
