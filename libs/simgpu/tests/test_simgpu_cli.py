"""`muxflow simgpu` as people and scripts use it."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from muxflow_simgpu import SimulatedMachine
from muxflow_simgpu.cli import add_to

Run = Callable[..., Result]

COMMANDS = ("start", "list", "fault", "log", "env", "stop")


@pytest.fixture
def simgpu(machine: SimulatedMachine, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command on the directory that $MUXFLOW_SIMGPU names."""
    monkeypatch.setenv("COLUMNS", "80")
    app = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False)
    add_to(app)
    app.command("other")(lambda: None)  # an application with one command has no names for commands

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["simgpu", *arguments])

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_and_fits_80_columns(simgpu: Run, command: str) -> None:
    done = simgpu(command, "--help")
    assert done.exit_code == 0
    assert "Example: " in done.stdout
    assert f"muxflow simgpu {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_devices_are_started_listed_and_stopped(simgpu: Run, machine: SimulatedMachine) -> None:
    assert simgpu("start", "T4", "H200").exit_code == 0
    listed = json.loads(simgpu("list", "--json").stdout)
    assert [entry["device"]["kind"] for entry in listed] == ["T4", "H200"]
    assert [entry["clients"] for entry in listed] == [[], []]
    table = simgpu("list").stdout
    assert all(device.uuid in table for device in machine.devices())
    assert simgpu("stop").stdout == "removed 2 devices\n"
    assert not machine.directory.exists()
    assert json.loads(simgpu("list", "--json").stdout) == []


def test_further_devices_take_the_free_places(simgpu: Run, machine: SimulatedMachine) -> None:
    simgpu("start", "T4", "T4", "T4")
    machine.remove(1)
    started = json.loads(simgpu("start", "A100", "--json").stdout)
    assert [device["index"] for device in started] == [1]


def test_an_unknown_kind_starts_nothing(simgpu: Run, machine: SimulatedMachine) -> None:
    done = simgpu("start", "T4", "B9000")
    assert done.exit_code == 1
    assert done.stderr == "muxflow: B9000: no such kind of GPU; there are: T4, A100, A100-80G, H200\n"
    assert machine.devices() == ()


def test_each_fault_takes_effect_and_can_be_mended(simgpu: Run, machine: SimulatedMachine) -> None:
    device = machine.start("A100")[0]
    assert simgpu("fault", "0", "xid", "13", "--pid", "77").exit_code == 0
    assert [(xid.xid, xid.pid) for xid in machine.xids(0)] == [(13, 77)]
    assert simgpu("fault", device.uuid, "lost").exit_code == 0
    assert machine.device(0).lost
    assert simgpu("fault", device.uuid[:8], "restore").exit_code == 0
    assert not machine.device(0).lost
    simgpu("fault", "0", "clock", "600", "--reason", "power-cap")
    assert (machine.device(0).sm_clock_mhz, machine.device(0).throttle_reasons) == (600, 0x4)
    simgpu("fault", "0", "clock")
    assert (machine.device(0).sm_clock_mhz, machine.device(0).throttle_reasons) == (device.boost_mhz, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["0", "xid"], 2, "xid: give its number"),
        (["0", "lost", "3"], 2, "lost: takes no number"),
        (["7", "lost"], 1, "7: no such device in"),
        (["GPU-", "lost"], 1, "GPU-: no such device in"),
        (["0", "mps-crash"], 1, "no MPS server runs on it"),
    ],
)
def test_a_fault_that_cannot_be_says_why(
    simgpu: Run, machine: SimulatedMachine, arguments: list[str], code: int, words: str
) -> None:
    machine.start("T4", "T4")
    done = simgpu("fault", *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_environment_lets_a_shell_find_the_programs_and_libraries(
    simgpu: Run, machine: SimulatedMachine, native: Path
) -> None:
    exports = simgpu("env").stdout
    script = f'{exports}\necho "$MUXFLOW_SIMGPU"; command -v nvidia-cuda-mps-control; echo "$LD_LIBRARY_PATH"'
    clean = {name: value for name, value in os.environ.items() if name not in {"MUXFLOW_SIMGPU", "LD_LIBRARY_PATH"}}
    lines = subprocess.run(["sh", "-c", script], env=clean, check=True, capture_output=True, text=True).stdout
    assert lines.splitlines() == [str(machine.directory), f"{native}/nvidia-cuda-mps-control", str(native)]


def test_another_directory_can_be_named(simgpu: Run, machine: SimulatedMachine, tmp_path: Path) -> None:
    other = tmp_path / "gpus"
    assert simgpu("start", "T4", "--dir", str(other)).exit_code == 0
    assert (other / "device-0").exists()
    assert machine.devices() == ()
    assert simgpu("stop", "--dir", str(other)).exit_code == 0


def test_an_empty_log_has_its_head_alone(simgpu: Run, machine: SimulatedMachine) -> None:
    machine.start("T4")
    assert simgpu("log", "0").stdout.split() == ["END", "PID", "TAG", "KIND", "WAITED", "RAN"]
    assert simgpu("log", "0", "--json").stdout == ""
