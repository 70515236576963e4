"""Attempts in cgroups of their own, where this machine permits that."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executing_node import Node, alive, until
from muxflow.contracts import RunExited, RunStarted
from muxflow_executor import cgroups


@pytest.fixture
async def grouped(tmp_path: Path) -> AsyncIterator[Node]:
    parent = cgroups.attempts_cgroup(tmp_path)
    if parent is None:
        pytest.skip("no writable cgroup v2 hierarchy here")
    node = Node(tmp_path, cgroup=parent)
    await node.runner.open()
    yield node
    await node.end()
    for path in parent.glob("*/"):
        with contextlib.suppress(OSError):
            path.rmdir()
    cgroups.leave(parent)
    assert not parent.exists()


async def test_program_runs_in_a_cgroup_of_its_own_that_goes_away_with_it(grouped: Node, tmp_path: Path) -> None:
    grouped.start("sh", "-c", f"cat /proc/self/cgroup; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
    await grouped.fact(RunStarted)
    order = grouped.attempt().intent.order
    assert order is not None
    assert order.cgroup is not None
    await until(lambda: f"/{Path(order.cgroup or '').name}\n" in grouped.output())
    (tmp_path / "go").touch()
    assert (await grouped.fact(RunExited)).exit.succeeded
    assert not Path(order.cgroup).exists()


async def test_daemon_without_any_mark_is_found_after_shim_and_executor_were_killed(
    grouped: Node, tmp_path: Path
) -> None:
    grouped.start("sh", "-c", f"env -i setsid sleep 1000 & echo $! > {tmp_path}/daemon; echo ready; wait")
    await grouped.fact(RunStarted)
    await until(lambda: grouped.output() == "ready\n")
    daemon = int((tmp_path / "daemon").read_text())
    await grouped.runner.close()
    os.kill(grouped.shim_pid(), signal.SIGKILL)
    await grouped.restart()
    assert (await grouped.fact(RunExited)).exit.lost
    assert not alive(daemon)
