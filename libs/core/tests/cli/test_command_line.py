"""The command line itself: help, completion, speed, what other rooms add."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from muxflow.cli import app as app_module
from muxflow.cli import command as command_module
from muxflow.cli import gpus, output
from muxflow.cli.ages import age, duration, parse_duration
from muxflow.cli.app import build

MUXFLOW = str(Path(sys.executable).with_name("muxflow"))
COMMANDS = (
    *("up", "submit", "jobs", "queue", "status", "logs", "cancel", "evict", "nodes", "devices", "explain", "top"),
    *("profiles", "predict", "events", "alerts", "device disable", "device enable", "device env"),
    *("online add", "online list", "online remove"),
    *("dead list", "dead show", "dead replay"),
)
SECOND_NS = 10**9


def muxflow(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MUXFLOW, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "COLUMNS": "80", **environ},
    )


def test_help_lists_every_command() -> None:
    done = muxflow("--help")
    assert done.returncode == 0
    listed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ")}
    assert {command.partition(" ")[0] for command in COMMANDS} <= listed


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_and_fits_80_columns(command: str) -> None:
    done = CliRunner().invoke(build(), [*command.split(), "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert f"Example: muxflow {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_print_json(command: str) -> None:
    assert "--json" in CliRunner().invoke(build(), [*command.split(), "--help"]).stdout


def test_help_says_what_is_used_up_and_what_is_not_there_yet() -> None:
    def told(command: str) -> str:
        return " ".join(CliRunner().invoke(build(), [command, "--help"], env={"COLUMNS": "200"}).stdout.split())

    assert "A name is used up until its job is purged." in told("submit")
    assert "They come from GPUs that are watched." in told("alerts")
    assert "lists are one document, streams (events, alerts, logs, up) one object per line" in told("jobs")


@pytest.mark.parametrize(
    ("command", "default"),
    [("explain", "1d."), ("events", "1h, or now with --follow."), ("alerts", "1h, or now with --follow.")],
)
def test_help_says_how_far_back_a_command_goes_by_itself(command: str, default: str) -> None:
    help_text = CliRunner().invoke(build(), [command, "--help"], env={"COLUMNS": "200"}).stdout
    (line,) = (line for line in help_text.splitlines() if "--since" in line and "DURATION" in line)
    assert f"Begin this long ago: 90s, 15m, 1h, 7d. Default: {default}" in line


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from muxflow.cli.app import build; build(); "
        "print(*{name.partition('.')[0] for name in sys.modules} & {'nats', 'msgspec', 'structlog', 'asyncio', 'yaml'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert set(done.stdout.split()) <= {"msgspec", "asyncio"}


def test_help_takes_less_than_a_third_of_a_second_to_import() -> None:
    script = (
        "import time, typer; began = time.process_time(); from muxflow.cli.app import build; build(); "
        "print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert float(done.stdout) < 0.3


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("muxflow st", "status"),
        ("muxflow dead re", "replay"),
        ("muxflow jobs --st", "--state"),
        ("muxflow jobs --state can", "cancelled"),
    ],
)
def test_the_shell_completes_commands_options_and_states(words: str, completed: str) -> None:
    position = len(words.split()) - 1
    done = muxflow(_MUXFLOW_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(position))
    assert completed in done.stdout.split()


def test_the_version_is_told() -> None:
    assert muxflow("--version").stdout.startswith("muxflow 0.")


def test_a_command_that_is_unknown_ends_with_code_2() -> None:
    done = muxflow("statsu")
    assert done.returncode == 2
    assert "statsu" in done.stderr


def test_other_rooms_add_commands_and_a_broken_one_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_to(app: typer.Typer) -> None:
        app.command("simulate")(lambda: typer.echo("simulated"))

    class Found(EntryPoint):
        def load(self) -> Any:
            if self.name == "broken":
                raise ImportError("no such module")
            return add_to

    def entry_points(group: str) -> list[EntryPoint]:
        return [Found(name, f"{name}.commands:add_to", group) for name in ("broken", "replay")]

    monkeypatch.setattr(app_module, "entry_points", entry_points)
    done = CliRunner().invoke(build(), ["simulate"])
    assert done.stdout == "simulated\n"
    assert capsys.readouterr().err == "muxflow: commands of broken.commands:add_to are left out: no such module\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (command_module.CommandError("too late", 1), 1, "muxflow: too late\n"),
        (
            FileNotFoundError(2, "No such file or directory", "job.yaml"),
            1,
            "muxflow: job.yaml: No such file or directory\n",
        ),
        (KeyError("x"), 1, "muxflow: unexpected KeyError: 'x' (set MUXFLOW_TRACEBACK=1 to see where)\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_failure_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(typer.Exit) as ended:
        command_module.end_with(fail)
    assert (ended.value.exit_code, capsys.readouterr().err) == (code, line)


def test_an_unexpected_error_shows_its_traceback_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("x")

    monkeypatch.setenv("MUXFLOW_TRACEBACK", "1")
    with pytest.raises(KeyError):
        command_module.end_with(fail)


def test_output_that_nobody_reads_ends_the_command() -> None:
    pipeline = f"{MUXFLOW} --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, timeout=30, check=True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2min", 120), ("1.5h", 5400), ("7d", 604_800), (" 1 h ", 3600)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1w", "soon"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 15m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (12.3, "12 s"), (300, "5 min"), (7200, "2 h"), (200_000, "2 d"), (-3, "0.0 s")],
)
def test_durations_have_about_two_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_age_is_counted_from_now_and_missing_times_have_none() -> None:
    assert age(100 * SECOND_NS, now_ns=112 * SECOND_NS) == "12 s"
    assert age(0) == "-"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Standard output that says it is a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no colours
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    return capsys


@pytest.mark.parametrize("length", [8, 48, 128])
def test_no_name_is_broken_by_a_table_on_a_terminal(length: int, terminal: pytest.CaptureFixture[str]) -> None:
    name = "n" * length
    output.table(["JOB", "STATE", "REASON"], [[name, "failed", "because of this and that " * 5]], wide="REASON")
    output.table(["NODE", "JOB"], [["node-1", f"default/{name}#1"], ["node-2", "-"]], wide="JOB")
    printed = terminal.readouterr().out.split()
    assert {name, f"default/{name}#1", "node-2"} <= set(printed)
    assert printed.count("because") == 5


def test_what_does_not_fit_beside_stands_below(terminal: pytest.CaptureFixture[str]) -> None:
    output.table(["JOB", "REASON"], [["n" * 70, "no GPU is large enough"], ["short", "-"]], wide="REASON")
    assert terminal.readouterr().out.splitlines() == ["JOB", "n" * 70, "    no GPU is large enough", "short"]


def test_people_are_told_kind_and_index_of_a_gpu_and_never_its_whole_uuid() -> None:
    uuid = "GPU-dd12395e-5894-588a-bfd1-8255cb3d8972"
    assert gpus.told(f"runs on GPU {uuid} of vm", {uuid: "T4 #0"}) == "runs on T4 #0 of vm"
    assert gpus.told(f"runs on GPU {uuid} of vm", {}) == "runs on GPU-dd12… of vm"
