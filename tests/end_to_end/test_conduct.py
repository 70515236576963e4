"""Jobs that do something past xCUDA, by intent or not, and jobs that only look like it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from muxflow.contracts import JobState
from protected_machine import ProtectedMachine
from workloads import lost, until

SUPPORT = Path(__file__).parents[1] / "support"
NEEDED = ("MUXFLOW_SIMGPU", "LD_LIBRARY_PATH", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_VISIBLE_DEVICES")
"""Without these a program finds neither the simulated driver nor MPS."""
BUSY = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from cuda_calls import *
context()
work = Work()
while True:
    work(0, MS, sm_pct=20)
    synchronize(0)
"""
PARENT = f"""
import os, signal, subprocess, sys
kept = {{name: value for name, value in os.environ.items() if sys.argv[1] == "all" or name in {NEEDED!r}}}
# The shell leaves, and the program is nobody's child but the shim's.
subprocess.run(["/bin/sh", "-c", '"$0" -S -c "$1" &', sys.executable, {BUSY!r}], env=kept)
print("started", flush=True)
signal.pause()
"""
MODULES = f"""
import signal, sys
sys.path.insert(0, {str(SUPPORT)!r})
from cuda_calls import *
context()
module(WORK + b".visible .global .align 4 .b8 table[" + str(3 << 30).encode() + b"];")
signal.pause()
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ProtectedMachine]:
    machine = ProtectedMachine(tmp_path / "state")
    yield machine
    machine.stop()
    assert not machine.processes()


def submit(node: ProtectedMachine, name: str, kind: str, code: str, *arguments: str) -> None:
    command = [sys.executable, "-S", "-c", code, *arguments]
    job = {"name": name, "command": command, "gpu": {"memory": "1GiB", "kinds": [kind]}, "retries": 3}
    done = node.run("submit", "-", stdin=json.dumps(job))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(120)
def test_a_job_is_stopped_for_what_it_does_past_xcuda_and_fails_with_the_reason(node: ProtectedMachine) -> None:
    node.simulate("A100", "T4", monitor__conduct__memory_after_s=0.5)
    service = node.online(0, rates_per_s=(20.0,), seconds=100)
    submit(node, "keeps", "T4", PARENT, "all")
    gpus = node.gpus
    until(lambda: gpus.clients(1), 30, "the child of a job that keeps to the rules is on the GPU")
    submit(node, "sheds", "A100", PARENT, "needed")
    shed = node.wait_job("sheds", lambda job: job.state is JobState.FAILED, 30, "has failed")
    assert (shed.attempt, shed.failures) == (1, 1)
    assert "is on the GPU without xCUDA" in shed.reason
    submit(node, "loads", "A100", MODULES)
    loads = node.wait_job("loads", lambda job: job.state is JobState.FAILED, 30, "has failed")
    assert "GiB on the GPU, 1.0 GiB were asked for" in loads.reason
    kept = node.job("keeps")
    assert (kept.state, kept.attempt) == (JobState.RUNNING, 1)
    service.end()
    assert lost(service.requests()) == []
    alerts = [each.event for each in node.portal.events("alerts.eviction")]
    begun = [(alert.job, alert.breach) for alert in alerts if alert.total_ms is None]
    assert begun == [("sheds", True), ("loads", True)]
