"""Processes that are killed while they work on a device: it stays usable, and keeps its time."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muxflow_simgpu import SimulatedMachine

SOURCE = Path(__file__).with_name("model_kills.c")
WORKS = re.findall(r'^    \{"(\w+)", \w+, \w+\}', SOURCE.read_text(), re.MULTILINE)
DEADLINE_S = 20
ROUNDS = 50

StartHammer = Callable[[int, int], subprocess.Popen[str]]


@pytest.mark.parametrize("work", WORKS)
def test_whoever_is_killed_at_any_instruction_leaves_what_can_be_repaired(model_programs: Path, work: str) -> None:
    done = subprocess.run(
        [model_programs / "model_kills", work], capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_kind_of_work_is_led(model_programs: Path) -> None:
    listed = subprocess.run([model_programs / "model_kills"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == WORKS


@pytest.fixture
def start_hammer(machine: SimulatedMachine, model_programs: Path) -> Iterator[StartHammer]:
    """Starts programs that do all sorts of things on the device; with 0 rounds they never end."""
    started: list[subprocess.Popen[str]] = []

    def start(seed: int, rounds: int) -> subprocess.Popen[str]:
        hammer = subprocess.Popen(
            [model_programs / "driver_hammer", str(seed), str(rounds)],
            env={**os.environ, **machine.environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(hammer)
        assert hammer.stdout is not None
        assert hammer.stdout.readline() == "ready\n", hammer.communicate()
        return hammer

    yield start
    for hammer in started:
        if hammer.poll() is None:
            hammer.kill()
        hammer.communicate()


def test_a_device_outlives_fifty_kills(machine: SimulatedMachine, start_hammer: StartHammer) -> None:
    machine.start("T4")
    empty = machine.device(0).memory_used_bytes
    moments = random.Random(5)
    survivor = start_hammer(0, 40)
    for seed in range(1, ROUNDS + 1):
        victim = start_hammer(seed, 0)
        time.sleep(moments.uniform(0, 0.02))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert survivor.wait(timeout=DEADLINE_S) == 0, survivor.communicate()
    deadline = time.monotonic() + DEADLINE_S
    while machine.clients(0):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert machine.device(0).memory_used_bytes == empty
    assert start_hammer(99, 2).wait(timeout=DEADLINE_S) == 0
    operations = machine.operations(0)
    assert all(op.enqueued_ns <= op.started_ns <= op.ended_ns for op in operations if op.started_ns)
