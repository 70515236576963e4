"""MPS with programs on it: servers come with their first client, and what is done to one client or to all."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cuda_program import CudaProgram
from muxflow_simgpu import MpsState, SimulatedMachine

LONG_NS = 60_000_000_000
"""Longer than any of these tests: such a kernel runs until it is stopped."""
DEADLINE_S = 20
SERVER_NOT_READY = 807
CONNECTION_LOST = 806
CLIENT_TERMINATED = 810


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Daemon:
    """A control daemon in the foreground, for one or all devices of a machine."""

    def __init__(self, machine: SimulatedMachine, native: Path, folder: Path, devices: str | None) -> None:
        self.folder = folder
        folder.mkdir()
        self.client_env = {**machine.environment(), "CUDA_MPS_PIPE_DIRECTORY": str(folder)}
        if devices is not None:
            self.client_env["CUDA_VISIBLE_DEVICES"] = devices
        self._program = str(native / "nvidia-cuda-mps-control")
        self._environ = {**os.environ, **self.client_env, "CUDA_MPS_LOG_DIRECTORY": str(folder)}
        self.process = subprocess.Popen([self._program, "-f"], env=self._environ, stdout=subprocess.DEVNULL)
        wait_until(lambda: self._run("get_server_list").returncode == 0)

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program],
            input=f"{command}\n",
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def ask(self, command: str) -> list[str]:
        done = self._run(command)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def server(self) -> int:
        (pid,) = self.ask("get_server_list")
        return int(pid)

    def end(self) -> None:
        if self.process.poll() is None:
            self._run("quit -t 0")
        self.process.wait(timeout=DEADLINE_S)


StartDaemon = Callable[..., Daemon]
StartProgram = Callable[..., CudaProgram]


@pytest.fixture
def start_daemon(machine: SimulatedMachine, native: Path) -> Iterator[StartDaemon]:
    """Starts control daemons; a socket's path is short, so they do not live where tests' files do."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/dev/shm") as folder:

        def start(devices: str | None = None) -> Daemon:
            daemons.append(Daemon(machine, native, Path(folder) / str(len(daemons)), devices))
            return daemons[-1]

        yield start
        for daemon in daemons:
            daemon.end()


@pytest.fixture
def daemon(machine: SimulatedMachine, start_daemon: StartDaemon) -> Daemon:
    """One for a machine with one A100."""
    machine.start("A100")
    return start_daemon()


@pytest.fixture
def start_program() -> Iterator[StartProgram]:
    """Starts programs, as clients of a daemon."""
    programs: list[CudaProgram] = []

    def start(daemon: Daemon, **variables: str) -> CudaProgram:
        programs.append(CudaProgram({**daemon.client_env, **variables}))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def with_context(program: CudaProgram) -> CudaProgram:
    assert program.do("context") == 0
    return program


def test_the_first_client_brings_the_server(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    assert daemon.ask("get_server_list") == []
    first = with_context(start_program(daemon))
    server = daemon.server()
    assert Path(f"/proc/{server}/cmdline").read_text().startswith("nvidia-cuda-mps-server")
    assert daemon.ask(f"get_server_status {server}") == ["ACTIVE"]
    second = with_context(start_program(daemon))
    assert daemon.ask(f"get_client_list {server}") == [str(first.pid), str(second.pid)]
    assert {client.mps_server_pid for client in machine.clients(0)} == {server}
    assert first.leave() == 0
    assert daemon.ask(f"get_client_list {server}") == [str(second.pid)]


def test_ps_lists_clients_below_its_header(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    client = with_context(start_program(daemon))
    header, row = daemon.ask("ps")
    assert header.split() == ["PID", "ID", "SERVER", "DEVICE", "NAMESPACE", "COMMAND"]
    namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    command = Path(f"/proc/{client.pid}/cmdline").read_text().split("\0")[0]
    assert row.split() == [str(client.pid), "0", str(daemon.server()), machine.device(0).uuid, namespace, command]
    assert daemon.ask(f"ps -p {daemon.server()}") == [header, row]


def test_nvml_lists_clients_as_mps_and_the_server_as_compute(
    daemon: Daemon, start_program: StartProgram, nvml: ModuleType
) -> None:
    client = with_context(start_program(daemon))
    nvml.nvmlInit()
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    assert [process.pid for process in nvml.nvmlDeviceGetMPSComputeRunningProcesses(gpu)] == [client.pid]
    assert [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [daemon.server()]


def test_a_terminated_client_loses_its_work_and_nobody_else_does(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    victim, other = with_context(start_program(daemon)), with_context(start_program(daemon))
    assert victim.do("launch", LONG_NS, 50, 0) == 0
    assert other.do("launch", 200_000_000, 50, 0) == 0
    victim.order("wait")
    assert daemon.ask(f"terminate_client {daemon.server()} {victim.pid}") == ["0"]
    assert victim.answer() == CLIENT_TERMINATED
    assert victim.do("launch", 1000, 50, 0) == CLIENT_TERMINATED
    assert other.do("wait") == 0
    assert daemon.ask(f"get_server_status {daemon.server()}") == ["ACTIVE"]
    assert [(operation.pid, operation.cancelled) for operation in machine.operations(0)] == [
        (victim.pid, True),
        (other.pid, False),
    ]
    assert daemon.ask(f"terminate_client {daemon.server()} 1") == ["Invalid process 1!", "1"]


def test_a_percentage_holds_for_contexts_made_after_it_was_set(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    with_context(start_program(daemon))
    assert daemon.ask(f"set_active_thread_percentage {daemon.server()} 40") == ["40.0"]
    with_context(start_program(daemon))
    with_context(start_program(daemon, CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="25"))
    with_context(start_program(daemon, CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="90"))
    assert [client.thread_share for client in machine.clients(0)] == [1.0, 0.4, 0.25, 0.4]


def test_a_default_percentage_is_that_of_the_next_server(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    with_context(start_program(daemon))
    daemon.ask("set_default_active_thread_percentage 30")
    old = daemon.server()
    assert daemon.ask(f"get_active_thread_percentage {old}") == ["100.0"]
    daemon.ask(f"shutdown_server {old} -f")
    wait_until(lambda: daemon.ask("get_server_list") == [])
    with_context(start_program(daemon))
    assert daemon.ask(f"get_active_thread_percentage {daemon.server()}") == ["30.0"]
    assert machine.mps(0)[0].thread_pct == 30


def test_a_memory_limit_holds_for_new_clients(daemon: Daemon, start_program: StartProgram) -> None:
    out_of_memory = 2
    daemon.ask("set_default_device_pinned_mem_limit 0 1G")
    limited = with_context(start_program(daemon))
    assert daemon.ask(f"get_device_pinned_mem_limit {daemon.server()} 0") == ["1G"]
    assert limited.do("allocate", 2 << 30) == out_of_memory
    daemon.ask(f"set_device_pinned_mem_limit {daemon.server()} 0 4G")
    assert with_context(start_program(daemon)).do("allocate", 2 << 30) == 0


def test_a_client_killed_with_work_in_flight_takes_the_others_along_until_they_are_gone(
    daemon: Daemon, start_program: StartProgram
) -> None:
    victim, other = with_context(start_program(daemon)), with_context(start_program(daemon))
    assert victim.do("launch", LONG_NS, 50, 0) == 0
    assert other.do("launch", LONG_NS, 50, 0) == 0
    other.order("wait")
    victim.kill()
    assert other.answer() == CLIENT_TERMINATED
    server = daemon.server()
    assert daemon.ask(f"get_server_status {server}") == ["FAULT"]
    assert start_program(daemon).do("context") == SERVER_NOT_READY
    assert other.leave() == 0
    with_context(start_program(daemon))
    assert daemon.ask(f"get_server_status {server}") == ["ACTIVE"]


def test_a_crashed_server_takes_its_clients_along_and_another_one_follows(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    victim = with_context(start_program(daemon))
    assert victim.do("launch", LONG_NS, 50, 0) == 0
    victim.order("wait")
    crashed = machine.crash_mps_server(0)
    assert victim.answer() == CONNECTION_LOST
    wait_until(lambda: daemon.ask("get_server_list") == [])
    with_context(start_program(daemon))
    assert daemon.server() != crashed


def test_a_server_shut_down_waits_for_its_clients(daemon: Daemon, start_program: StartProgram) -> None:
    client = with_context(start_program(daemon))
    server = daemon.server()
    daemon.ask(f"shutdown_server {server}")
    assert client.do("launch", 1_000_000, 50, 0) == 0
    assert client.do("wait") == 0
    assert daemon.server() == server
    client.leave()
    wait_until(lambda: daemon.ask("get_server_list") == [])


def test_quit_waits_for_clients_and_takes_nobody_new(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    client = with_context(start_program(daemon))
    late = start_program(daemon)
    assert late.do("init") == 0
    with subprocess.Popen(
        [daemon._program], env=daemon._environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as front_end:
        assert front_end.stdin is not None
        front_end.stdin.write("quit\n")
        front_end.stdin.flush()
        wait_until(lambda: machine.mps(0)[0].state is MpsState.CLOSING)
        late.order("context")
        for _ in range(100):  # while there is someone to wait for, the other one is not let in
            assert client.do("launch", 1_000_000, 50, 0) == 0
            assert client.do("wait") == 0
        assert [each.pid for each in machine.clients(0)] == [client.pid]
        assert client.leave() == 0
        front_end.communicate(timeout=DEADLINE_S)
        assert front_end.returncode == 0
    assert daemon.process.wait(timeout=DEADLINE_S) == 0
    assert machine.mps(0) == ()


def test_quit_with_a_timeout_ends_clients(daemon: Daemon, start_program: StartProgram) -> None:
    client = with_context(start_program(daemon))
    assert client.do("launch", LONG_NS, 50, 0) == 0
    client.order("wait")
    daemon.ask("quit -t 0")
    assert client.answer() == CONNECTION_LOST
    assert daemon.process.wait(timeout=DEADLINE_S) == 0


def test_a_killed_daemon_leaves_its_server_to_the_clients_that_it_has(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    client = with_context(start_program(daemon))
    server = daemon.server()
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait(timeout=DEADLINE_S)
    assert client.do("launch", 1_000_000, 50, 0) == 0
    assert client.do("wait") == 0
    assert {each.mps_server_pid for each in machine.clients(0)} == {server}
    assert client.leave() == 0
    wait_until(lambda: machine.mps(0) == ())


def test_each_daemon_serves_its_own_gpu(
    machine: SimulatedMachine, start_daemon: StartDaemon, start_program: StartProgram
) -> None:
    devices = machine.start("T4", "T4")
    daemons = [start_daemon(device.uuid) for device in devices]
    programs = [with_context(start_program(daemon)) for daemon in daemons]
    for device, daemon, program in zip(devices, daemons, programs, strict=True):
        assert [client.pid for client in machine.clients(device.index)] == [program.pid]
        assert daemon.ask("get_device_client_list") == [device.uuid, str(program.pid)]
    machine.crash_mps_server(0)
    assert programs[1].do("launch", 1_000_000, 50, 0) == 0
    assert programs[1].do("wait") == 0


def test_a_program_of_another_pipe_directory_is_no_client(
    daemon: Daemon, start_program: StartProgram, machine: SimulatedMachine
) -> None:
    with_context(start_program(daemon, CUDA_MPS_PIPE_DIRECTORY="/nowhere"))
    assert [client.mps_server_pid for client in machine.clients(0)] == [None]
    assert daemon.ask("get_server_list") == []


def test_a_daemon_with_nothing_to_do_sleeps(daemon: Daemon, start_program: StartProgram) -> None:
    program = with_context(start_program(daemon))

    def cpu_s() -> float:
        fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu_s()
    for _ in range(200):
        assert program.do("launch", 1_000_000, 50, 0) == 0
        assert program.do("wait") == 0
    assert cpu_s() - before <= 0.02
