"""The examples as their README says, beside one machine that `muxflow up` runs."""

from __future__ import annotations

import json
import os
import re
import runpy
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxflow.client import Received
from muxflow.contracts import DeviceAlert, Event, EvictionAlert, OnlineAlert
from protected_machine import ProtectedMachine
from workloads import until

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/README.md").read_text()
NODE_CLIENT = "examples/plain-nats"
DEADLINE_S = 60.0

pytestmark = [pytest.mark.xdist_group("examples"), pytest.mark.timeout(180)]  # one worker runs their machine


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples: Node.js leaves its packages where a client lies."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    return place


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProtectedMachine]:
    """One machine with two GPUs."""
    machine = ProtectedMachine(tmp_path_factory.mktemp("machine") / "state")
    try:
        machine.simulate("T4", "A100")
        yield machine
    finally:
        machine.stop()


def environ(state_dir: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MUXFLOW_")}
    return {**kept, "PATH": path, "MUXFLOW_STATE_DIR": str(state_dir)}


def run(command: str, place: Path, state_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env=environ(state_dir),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def unavailable(reason: str) -> None:
    """Skip, unless this is where everything must be run."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def node_client(place: Path) -> Path:
    """The client in Node.js, with what it needs."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            unavailable(f"there is no {program}")
    client = place / NODE_CLIENT
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefer-offline"]
    install += ["--fetch-retries=2", "--fetch-retry-mintimeout=1000"]  # one that has no network is to find out soon
    try:
        done = subprocess.run(install, cwd=client, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        unavailable("npm does not come to an end")
    else:
        if done.returncode != 0:
            unavailable(f"npm cannot install what the client needs: {done.stderr.partition(chr(10))[0]}")
    return client


# Job files


def test_a_job_file_declares_the_memory_that_its_job_takes(machine: ProtectedMachine, tmp_path: Path) -> None:
    names = ("small", "medium", "large", "offline")
    files = [tmp_path / f"{name}.yaml" for name in names]
    for file in files:
        text = (ROOT / "examples/workloads" / file.name).read_text().replace("$PWD", str(ROOT))
        shorter = re.sub(r'--batches, "\d+"', '--batches, "10"', text)
        assert shorter != text
        file.write_text(re.sub(r"^name: .*", f"name: short-{file.stem}", shorter, flags=re.MULTILINE))
    done = machine.run("submit", *map(str, files), "--wait", "--json", timeout_s=DEADLINE_S)
    assert [each["state"] for each in json.loads(done.stdout)] == ["finished"] * 4, done.stdout
    for name in names:
        begin, end = map(json.loads, machine.run("logs", f"short-{name}").stdout.splitlines())
        assert (begin["from_batch"], end["batches"]) == (0, 10)


# The client in Node.js


def test_the_node_client_tells_the_events_of_its_job_and_waits_for_its_end(
    machine: ProtectedMachine, node_client: Path
) -> None:
    done = run("node submit.mjs by-node", node_client, machine.state_dir)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    kinds = [".".join(line.split(":")[0].split(".")[1:3]) for line in lines if line.startswith("muxflow.")]
    assert kinds == ["jobs.accepted", "runs.started", "runs.exited", "jobs.finished"]
    assert lines[-1] == "default/by-node: finished"
    assert machine.run("logs", "by-node").stdout == "hello from Node.js\n"
    again = run("node submit.mjs by-node", node_client, machine.state_dir)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "default/by-node: finished")
    assert "runs.started" not in again.stdout


def test_the_node_client_says_how_a_job_ends_that_does_not_succeed(
    machine: ProtectedMachine, node_client: Path
) -> None:
    client = (node_client / "submit.mjs").read_text()
    for name, changed in (
        ("by-node-cancelled", client.replace('"echo", "hello from Node.js"', '"sleep", "1000"')),
        ("by-node-rejected", client.replace("2 ** 30", "-1")),
    ):
        assert changed != client
        (node_client / f"{name}.mjs").write_text(changed)
    command = ["node", "by-node-cancelled.mjs", "by-node-cancelled"]
    with subprocess.Popen(
        command, cwd=node_client, env=environ(machine.state_dir), stdout=subprocess.PIPE, text=True
    ) as waiting:
        output = waiting.stdout
        assert output is not None
        until(lambda: "runs.started" in output.readline(), DEADLINE_S, "it runs")
        machine.json("cancel", "by-node-cancelled")
        assert output.read().splitlines()[-1] == "default/by-node-cancelled: cancelled"
    assert waiting.returncode == 1
    rejected = run("node by-node-rejected.mjs by-node-rejected", node_client, machine.state_dir)
    assert (rejected.returncode, rejected.stdout.splitlines()[-1]) == (1, "default/by-node-rejected: rejected")
    assert "spec.gpu.memory_bytes" in rejected.stdout


def test_the_node_client_ends_with_a_line_where_nothing_runs(node_client: Path, tmp_path: Path) -> None:
    done = run("node submit.mjs", node_client, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "`muxflow up`" in line


# Alerts


def test_who_is_on_call_is_told_of_an_alert_as_it_comes_and_later_of_what_there_was(
    machine: ProtectedMachine, place: Path
) -> None:
    gpu = machine.device(1).gpu.uuid
    watching = subprocess.Popen(
        [sys.executable, "examples/alerts.py", "--json", "--since", "0.1"],
        cwd=place,
        env=environ(machine.state_dir),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        machine.gpus.inject_xid(1, 48)
        assert select.select([watching.stdout], [], [], DEADLINE_S)[0], "an alert comes"
        alert = json.loads(watching.stdout.readline())
        assert (alert["kind"], alert["event"]["gpu"]) == ("alerts.device", gpu)
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=DEADLINE_S)
        assert watching.returncode == 0
    finally:
        watching.kill()
        watching.communicate()
    told = run("python examples/alerts.py --since 60 --once", place, machine.state_dir)
    assert told.returncode == 0, told.stderr
    assert any(gpu in line and "xid 48" in line for line in told.stdout.splitlines()), told.stdout
    later = run("python examples/alerts.py --once", place, machine.state_dir)
    assert (later.returncode, later.stdout) == (0, "")


ALERTS = [
    (
        EvictionAlert(
            node="gpu-7", gpu="GPU-1", tenant="default", job="train", attempt=2, cause="busy", total_ms=812.4
        ),
        "gpu-7 default/train evicted from GPU-1, gone in 812 ms: busy",
    ),
    (
        EvictionAlert(node="gpu-7", gpu="GPU-1", tenant="default", job="train", attempt=2, cause="busy"),
        "gpu-7 default/train evicted from GPU-1, going: busy",
    ),
    (OnlineAlert(node="gpu-7", workload="chat", message="3 requests lost"), "gpu-7 chat: 3 requests lost"),
    (DeviceAlert(node="gpu-7", gpu="GPU-1", message="too hot"), "gpu-7 warning: GPU-1: too hot"),
]


@pytest.mark.parametrize(("alert", "words"), ALERTS)
def test_an_alert_of_any_kind_is_one_line(alert: Event, words: str) -> None:
    line = runpy.run_path(str(ROOT / "examples/alerts.py"))["line"]
    received = Received(subject="", kind="", names={"node": "gpu-7"}, time_ns=10**18, sequence=1, event=alert)
    at, said = line(received)[:19], line(received)[20:]
    assert re.fullmatch(r"2001-09-0[89] \d\d:46:40", at)
    assert said == words


# The README, last: its jobs go on for minutes


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_of_the_readme_works(
    machine: ProtectedMachine, place: Path, command: str, request: pytest.FixtureRequest
) -> None:
    if "npm" in command:
        request.getfixturevalue("node_client")
    done = run(command, place, machine.state_dir)
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_every_link_of_the_readme_leads_somewhere(target: str) -> None:
    assert (ROOT / "examples" / target).exists()
