"""``simgpu``: simulated GPUs on this machine, from the command line."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from muxflow.cli import output
from muxflow.cli.command import USAGE, CommandError, JsonOption, end_with, epilog

if TYPE_CHECKING:
    from muxflow_simgpu import Device, Operation, SimulatedMachine

_FOLLOW_S: Final = 0.05

DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        help="Directory of the devices, on a tmpfs.",
        show_default="$MUXFLOW_SIMGPU, else /dev/shm/muxflow-simgpu-<uid>",
    ),
]
DeviceArgument = Annotated[
    str, typer.Argument(help="Index, UUID, or the beginning of a UUID (four characters or more).")
]

_ENV_EXAMPLE: Final = 'eval "$(muxflow simgpu env)"'

_HELP: Final = """\
Simulated GPUs: programs on the CUDA driver API, NVML and MPS run on them unchanged. Their figures are simulated.

Start some, then let a program see them: `eval "$(muxflow simgpu env)"`.
"""


class Fault(StrEnum):
    """What can be done to a device."""

    XID = "xid"
    LOST = "lost"
    RESTORE = "restore"
    CLOCK = "clock"
    MPS_CRASH = "mps-crash"


class Reason(StrEnum):
    """Why a clock is low, as NVML tells it."""

    POWER_CAP = "power-cap"
    HARDWARE = "hardware"
    THERMAL = "thermal"
    HARDWARE_THERMAL = "hardware-thermal"
    POWER_BRAKE = "power-brake"


_REASON_BITS: Final = {
    Reason.POWER_CAP: 0x4,
    Reason.HARDWARE: 0x8,
    Reason.THERMAL: 0x20,
    Reason.HARDWARE_THERMAL: 0x8 | 0x40,
    Reason.POWER_BRAKE: 0x8 | 0x80,
}


def add_to(app: typer.Typer) -> None:
    """Add ``simgpu`` and its commands."""
    simgpu = typer.Typer(name="simgpu", help=_HELP, no_args_is_help=True)
    simgpu.command(
        epilog=epilog("muxflow simgpu start T4 A100", "muxflow simgpu start H200 --dir /dev/shm/test", _ENV_EXAMPLE)
    )(start)
    simgpu.command("list", epilog=epilog("muxflow simgpu list", "muxflow simgpu list --json"))(list_devices)
    simgpu.command(
        epilog=epilog(
            "muxflow simgpu fault 0 xid 13",
            "muxflow simgpu fault 0 xid 31 --pid 4242",
            "muxflow simgpu fault 0 clock 600 --reason thermal",
            "muxflow simgpu fault 0 clock",
            "muxflow simgpu fault GPU-e65e lost",
            "muxflow simgpu fault GPU-e65e restore",
            "muxflow simgpu fault 0 mps-crash",
        )
    )(fault)
    simgpu.command(epilog=epilog("muxflow simgpu log 0 --follow", "muxflow simgpu log 0 --json"))(log)
    simgpu.command(epilog=epilog(_ENV_EXAMPLE))(env)
    simgpu.command(epilog=epilog("muxflow simgpu stop"))(stop)
    app.add_typer(simgpu)


def start(
    *,
    kinds: Annotated[list[str], typer.Argument(metavar="KIND...", help="Kinds of GPUs, such as T4, A100, H200.")],
    directory: DirOption = None,
    random_uuids: Annotated[
        bool, typer.Option("--random-uuids", help="Give new UUIDs, instead of those that this place has each time.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make simulated GPUs, beside those that are there.

    They stay until `stop`; no process keeps them.
    """

    def work(machine: SimulatedMachine) -> None:
        devices = machine.start(*kinds, random_uuids=random_uuids)
        if as_json:
            output.json(devices)
            return
        _tell_devices(devices)
        output.note(f"in {machine.directory}; to let programs see them: {_ENV_EXAMPLE}")

    _on_machine(directory, work)


def list_devices(*, directory: DirOption = None, as_json: JsonOption = False) -> None:
    """List the simulated GPUs, and the processes on them."""

    def work(machine: SimulatedMachine) -> None:
        devices = machine.devices()
        if as_json:
            output.json(
                [
                    {"device": device, "clients": machine.clients(device.index), "mps": machine.mps(device.index)}
                    for device in devices
                ]
            )
        elif devices:
            _tell_devices(devices)
            _tell_clients(machine, devices)
        else:
            output.line(f"no devices in {machine.directory}")

    _on_machine(directory, work)


def fault(
    *,
    device: DeviceArgument,
    what: Annotated[
        Fault,
        typer.Argument(
            help="`xid` N: a fault that the driver reports; `lost`: the GPU falls off the bus; `restore`: it is back; "
            "`clock` MHZ: the SM clock drops, and rises again without MHZ; `mps-crash`: its MPS server dies."
        ),
    ],
    value: Annotated[int | None, typer.Argument(metavar="[N|MHZ]", min=1)] = None,
    pid: Annotated[int | None, typer.Option(help="The process that causes the XID. Default: all of them.")] = None,
    reason: Annotated[Reason, typer.Option(help="What NVML says of a low clock.")] = Reason.HARDWARE,
    directory: DirOption = None,
) -> None:
    """Break a simulated GPU, or mend it."""

    def work(machine: SimulatedMachine) -> None:
        found = machine.find(device)
        if value is None and what is Fault.XID:
            raise CommandError("xid: give its number, such as `xid 13`", USAGE)
        if value is not None and what not in {Fault.XID, Fault.CLOCK}:
            raise CommandError(f"{what}: takes no number", USAGE)
        done = _break(machine, found, what, value=value, pid=pid, reason=reason)
        output.line(f"{found.index} ({found.uuid}): {done}")

    _on_machine(directory, work)


def _break(
    machine: SimulatedMachine, device: Device, what: Fault, *, value: int | None, pid: int | None, reason: Reason
) -> str:
    match what:
        case Fault.XID:
            machine.inject_xid(device.index, value or 0, pid=pid)
            return f"XID {value}" + (f" by {pid}" if pid else "")
        case Fault.CLOCK:
            machine.set_clock(device.index, value, throttle_reasons=_REASON_BITS[reason])
            return f"SM clock {value} MHz ({reason})" if value else f"SM clock {device.boost_mhz} MHz"
        case Fault.LOST:
            machine.lose(device.index)
            return "lost"
        case Fault.RESTORE:
            machine.restore(device.index)
            return "restored"
        case Fault.MPS_CRASH:
            return f"killed MPS server {machine.crash_mps_server(device.index)}"


def log(
    *,
    device: DeviceArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what ends from now on.")] = False,
    directory: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a simulated GPU has done: operations that have ended, in order of their ends."""

    def work(machine: SimulatedMachine) -> None:
        index = machine.find(device).index
        if not as_json:
            output.line(_LOG.format("END", "PID", "TAG", "KIND", "WAITED", "RAN", "").rstrip())
        after = 0
        while True:
            for operation in machine.operations(index, after=after):
                after = operation.number
                _tell_operation(operation, as_json=as_json)
            if not follow:
                return
            time.sleep(_FOLLOW_S)

    _on_machine(directory, work)


def env(*, directory: DirOption = None) -> None:
    """Print, for `eval`, the variables that let a program see the simulated GPUs."""

    def work(machine: SimulatedMachine) -> None:
        for name, value in machine.environment().items():
            output.line(f"export {name}={shlex.quote(value)}")

    _on_machine(directory, work)


def stop(*, directory: DirOption = None) -> None:
    """Remove all simulated GPUs of the directory."""

    def work(machine: SimulatedMachine) -> None:
        count = len(machine.devices())
        machine.stop()
        output.line(f"removed {count} device{'' if count == 1 else 's'}")

    _on_machine(directory, work)


def _on_machine(directory: Path | None, work: Callable[[SimulatedMachine], None]) -> None:
    """Do a command's work on the machine that is meant, and end as all commands end."""
    from muxflow_simgpu import SimulatedMachine, SimulationError, default_directory

    def run() -> None:
        try:
            work(SimulatedMachine(directory or default_directory()))
        except SimulationError as error:
            raise CommandError(str(error)) from None

    end_with(run)


def _tell_devices(devices: tuple[Device, ...]) -> None:
    from muxflow.sizes import format_size

    rows: list[list[output.Cell]] = [
        [
            str(device.index),
            device.uuid,
            device.kind,
            "lost" if device.lost else f"{device.sm_clock_mhz} MHz",
            f"{format_size(device.memory_used_bytes)} of {format_size(device.memory_bytes)}",
            f"{device.busy_s:.3f} s",
        ]
        for device in devices
    ]
    output.table(["", "UUID", "KIND", "CLOCK", "MEMORY", "BUSY"], rows, wide="BUSY")


def _tell_clients(machine: SimulatedMachine, devices: tuple[Device, ...]) -> None:
    from muxflow.sizes import format_size

    rows: list[list[output.Cell]] = [
        [
            str(device.index),
            str(client.pid),
            client.tag or "-",
            str(client.mps_server_pid or "-"),
            f"{client.thread_share:.0%}",
            format_size(client.memory_bytes + client.context_bytes),
            f"{client.busy_s:.3f} s",
        ]
        for device in devices
        for client in machine.clients(device.index)
    ]
    if rows:
        output.line("")
        output.table(["GPU", "PID", "TAG", "MPS SERVER", "SMS", "MEMORY", "BUSY"], rows, wide="BUSY")


_LOG: Final = "{:>18}  {:>8}  {:<16} {:<13} {:>12}  {:>12}  {}"


def _tell_operation(operation: Operation, *, as_json: bool) -> None:
    if as_json:
        output.json(operation)
        return
    waited_ns = (operation.started_ns or operation.ended_ns) - operation.enqueued_ns
    line = _LOG.format(
        f"{operation.ended_ns / 1e9:.9f}",
        operation.pid,
        operation.tag,
        operation.kind.name.lower(),
        f"{waited_ns / 1e3:.1f} us",
        f"{operation.ran_ns / 1e3:.1f} us",
        "cancelled" if operation.cancelled else "",
    )
    output.line(line.rstrip())
