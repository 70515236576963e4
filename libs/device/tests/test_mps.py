"""The MPS control client, against the simulated GPU's daemon and, where it can be had, NVIDIA's own.

$MUXFLOW_REAL_MPS_CONTROL names the folder of NVIDIA's `nvidia-cuda-mps-control` (Debian's package nvidia-cuda-mps has
it); it starts without a GPU and speaks its whole protocol.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cuda_program import CudaProgram
from muxflow_device.mps import BINARY, MpsControl, MpsError, MpsNotRunningError, ServerState
from muxflow_device.rundir import DeviceDirectory, RunDirectory
from muxflow_simgpu import SimulatedMachine, environment

REAL = os.environ.get("MUXFLOW_REAL_MPS_CONTROL")
DEADLINE_S = 20.0
LONG_NS = 60_000_000_000
"""Longer than any of these tests."""


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def pid_of_daemon(directory: DeviceDirectory) -> int:
    return int((directory.mps_pipe / f"{BINARY}.pid").read_text())


@pytest.fixture
def variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """What a daemon inherits: the PATH decides whose it is."""
    if request.param == "NVIDIA's":
        if REAL is None:
            pytest.skip("NVIDIA's MPS control is not here; MUXFLOW_REAL_MPS_CONTROL names its folder")
        return {"PATH": f"{REAL}{os.pathsep}{os.environ['PATH']}"}
    return environment(Path("/nowhere"))


both = pytest.mark.parametrize("variables", ["stand-in", "NVIDIA's"], indirect=True)


@pytest.fixture
async def control(directory: DeviceDirectory, uuid: str, variables: dict[str, str]) -> AsyncIterator[MpsControl]:
    control = MpsControl(directory, uuid=uuid, environment=variables, deadline_s=DEADLINE_S)
    yield control
    await control.quit()


# ---- life of the daemon


@both
async def test_a_daemon_is_started_once_and_then_taken_over(
    control: MpsControl, directory: DeviceDirectory, uuid: str, variables: dict[str, str]
) -> None:
    assert not await control.running()
    assert await control.start()
    assert not await control.start()
    other = MpsControl(directory, uuid=uuid, environment=variables)
    assert not await other.start(), "another service finds it"
    assert await control.problem() is None
    assert await control.servers() == ()


@both
async def test_a_daemon_is_nobodys_child_and_in_nobodys_session(
    control: MpsControl, directory: DeviceDirectory
) -> None:
    await control.start()
    pid = pid_of_daemon(directory)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid(), "it goes on when we end"
    assert os.getsid(pid) not in (os.getsid(0), 0)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


@both
async def test_a_daemon_that_was_killed_is_missed_and_started_again(
    control: MpsControl, directory: DeviceDirectory
) -> None:
    await control.start()
    os.kill(pid_of_daemon(directory), signal.SIGKILL)

    async def gone() -> bool:
        return not await control.running()

    await until(gone)
    problem = await control.problem()
    assert problem is not None
    assert "no MPS daemon runs" in problem
    with pytest.raises(MpsNotRunningError, match="start it"):
        await control.servers()
    assert await control.start()
    assert await control.problem() is None


@both
async def test_to_quit_twice_is_no_error(control: MpsControl) -> None:
    await control.start()
    await control.quit()
    assert not await control.running()
    await control.quit()


# ---- the protocol


@both
async def test_the_default_thread_percentage_is_what_was_set(control: MpsControl) -> None:
    await control.start()
    assert await control.default_thread_percentage() == 100
    await control.set_default_thread_percentage(35)
    assert await control.default_thread_percentage() == 35


@both
async def test_a_percentage_that_the_daemon_does_not_take_is_an_error(control: MpsControl) -> None:
    await control.start()
    with pytest.raises(MpsError, match="took no thread percentage of 0"):
        await control.set_default_thread_percentage(0)


@both
async def test_whoever_is_no_client_cannot_be_terminated(control: MpsControl) -> None:
    await control.start()
    assert not await control.terminate_client(os.getpid())


@both
async def test_services_that_ask_at_the_same_time_are_all_answered(
    control: MpsControl, directory: DeviceDirectory, uuid: str, variables: dict[str, str]
) -> None:
    await control.start()
    await control.set_default_thread_percentage(40)
    services = [MpsControl(directory, uuid=uuid, environment=variables, deadline_s=DEADLINE_S) for _ in range(4)]
    answers = await asyncio.gather(*(each.default_thread_percentage() for each in services for _ in range(3)))
    assert answers == [40.0] * 12


@both
async def test_a_front_end_that_stays_connected_is_named_as_the_reason(
    control: MpsControl, directory: DeviceDirectory, uuid: str, variables: dict[str, str]
) -> None:
    await control.start()
    binary = shutil.which(BINARY, path=variables["PATH"])
    assert binary is not None
    pipe = {"CUDA_MPS_PIPE_DIRECTORY": str(directory.mps_pipe), "CUDA_MPS_LOG_DIRECTORY": str(directory.mps_log)}
    with subprocess.Popen([binary], env={**os.environ, **variables, **pipe}, stdin=subprocess.PIPE) as person:
        assert person.stdin is not None
        person.stdin.write(b"set_default_active_thread_percentage 41\n")
        person.stdin.flush()

        async def connected() -> bool:
            return " 41.0\n" in (directory.mps_log / "control.log").read_text()

        await until(connected)
        hurried = MpsControl(directory, uuid=uuid, environment=variables, deadline_s=1.5)
        with pytest.raises(MpsError, match="another front end stays connected"):
            await hurried.default_thread_percentage()
        person.stdin.close()
        assert await control.default_thread_percentage() == 41


# ---- what can be wrong


async def test_without_mps_it_is_said_what_to_install(directory: DeviceDirectory, uuid: str) -> None:
    control = MpsControl(directory, uuid=uuid, environment={"PATH": "/nowhere"})
    with pytest.raises(MpsError, match=r"not on the PATH.*NVIDIA's driver"):
        await control.start()


@pytest.mark.parametrize("variables", ["stand-in"], indirect=True)
async def test_a_daemon_that_hangs_is_told_from_one_that_is_not_there(
    control: MpsControl, directory: DeviceDirectory, uuid: str, variables: dict[str, str]
) -> None:
    await control.start()
    pid = pid_of_daemon(directory)
    os.kill(pid, signal.SIGSTOP)
    try:
        hurried = MpsControl(directory, uuid=uuid, environment=variables, deadline_s=0.3)
        with pytest.raises(MpsError, match="has not answered") as caught:
            await hurried.start()
        assert not isinstance(caught.value, MpsNotRunningError)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await control.running()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("variables", ["stand-in"], indirect=True)
async def test_a_daemon_of_another_user_is_not_taken_over(
    control: MpsControl, directory: DeviceDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.start()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(MpsError, match="belongs to user 0, and we are 12345"):
        await control.start()


# ---- clients


class Gpu(NamedTuple):
    """A simulated GPU with its daemon."""

    control: MpsControl
    client: dict[str, str]
    """What makes a process a client of it."""


@pytest.fixture
async def gpu(run: RunDirectory) -> AsyncIterator[Gpu]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path, SimulatedMachine(Path(path)) as machine:
        uuid = machine.start("A100")[0].uuid
        directory, variables = run.device(uuid), environment(Path(path))
        control = MpsControl(directory, uuid=uuid, environment=os.environ | variables, deadline_s=DEADLINE_S)
        await control.start()
        pipe = {"CUDA_MPS_PIPE_DIRECTORY": str(directory.mps_pipe), "CUDA_VISIBLE_DEVICES": uuid}
        yield Gpu(control, variables | pipe)
        await control.quit()


async def make_contexts(*programs: CudaProgram) -> None:
    """Contexts need the daemon's server, which it starts for the first one."""
    for program in programs:
        assert await asyncio.to_thread(program.do, "context") == 0


async def test_one_client_is_terminated_and_the_others_go_on(gpu: Gpu) -> None:
    with CudaProgram(gpu.client) as online, CudaProgram(gpu.client) as offline:
        await make_contexts(online, offline)
        (server,) = await gpu.control.servers()
        assert (server.state, set(server.clients)) == (ServerState.ACTIVE, {online.pid, offline.pid})
        assert offline.do("launch", LONG_NS, 50, 0) == 0

        assert await gpu.control.terminate_client(offline.pid)
        assert offline.do("wait") != 0
        assert online.do("launch", 1000, 50, 0) == 0
        assert online.do("wait") == 0
        assert await gpu.control.problem() is None


async def test_a_client_that_dies_with_work_in_flight_is_seen_as_a_problem(gpu: Gpu) -> None:
    async def broken() -> bool:
        return await gpu.control.problem() is not None

    with CudaProgram(gpu.client) as online, CudaProgram(gpu.client) as offline:
        await make_contexts(online, offline)
        assert await gpu.control.problem() is None
        assert offline.do("launch", LONG_NS, 50, 0) == 0
        offline.kill()
        await until(broken)
        assert "is in FAULT" in (await gpu.control.problem() or "")


async def test_clients_are_given_time_to_end_when_the_daemon_quits(gpu: Gpu) -> None:
    with CudaProgram(gpu.client) as program:
        await make_contexts(program)
        quitting = asyncio.create_task(gpu.control.quit(clients_s=DEADLINE_S))
        assert await asyncio.to_thread(program.do, "wait") == 0
        assert await asyncio.to_thread(program.leave) == 0
        await quitting
    assert not await gpu.control.running()
