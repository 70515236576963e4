"""Several processes on one device: who sees it, who has it when, what they share, and how they go."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cuda_program import CudaProgram
from muxflow_simgpu import SimulatedMachine
from muxflow_simgpu.structs import Operation, OperationKind

PROGRAMS = Path(__file__).with_name("programs")
DEADLINE_S = 20
MS = 1_000_000
NO_DEVICE = 100
LOST = 46
OUT_OF_MEMORY = 2

StartProgram = Callable[..., CudaProgram]


@pytest.fixture
def start_program(machine: SimulatedMachine) -> Iterator[StartProgram]:
    programs: list[CudaProgram] = []

    def start(*, tag: str = "", **variables: str) -> CudaProgram:
        programs.append(CudaProgram({**machine.environment(), **variables}, tag=tag))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


@pytest.fixture
def daemon(machine: SimulatedMachine, native: Path) -> Iterator[dict[str, str]]:
    """Variables that make a process a client of an MPS control daemon; the machine has one T4."""
    machine.start("T4")
    with tempfile.TemporaryDirectory(prefix="mps-", dir="/dev/shm") as folder:
        variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environ = {**os.environ, **machine.environment(), **variables}
        control = native / "nvidia-cuda-mps-control"
        process = subprocess.Popen([control, "-f"], env=environ, stdout=subprocess.DEVNULL)

        def tell(command: str) -> int:
            return subprocess.run(
                [control], input=command, env=environ, capture_output=True, text=True, check=False
            ).returncode

        wait_until(lambda: tell("get_server_list\n") == 0)
        yield variables
        tell("quit -t 0\n")
        process.wait(timeout=DEADLINE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kernels(machine: SimulatedMachine) -> list[Operation]:
    return [operation for operation in machine.operations(0) if operation.kind == OperationKind.KERNEL]


def started(operation: Operation) -> int:
    assert operation.started_ns is not None
    return operation.started_ns


def test_without_devices_there_is_no_device(machine: SimulatedMachine, start_program: StartProgram) -> None:
    assert start_program().do("init") == NO_DEVICE
    machine.start("T4")
    assert start_program().do("init") == 0
    assert start_program(MUXFLOW_SIMGPU="/nonexistent").do("init") == NO_DEVICE
    assert start_program(CUDA_VISIBLE_DEVICES="").do("init") == NO_DEVICE


def test_visible_devices_are_chosen_and_ordered(machine: SimulatedMachine, start_program: StartProgram) -> None:
    _, second, third = machine.start("T4", "A100", "H200")
    for visible, index in (("1", 1), ("2,1", 2), (f"{third.uuid},0", 2), (second.uuid[:12], 1)):
        program = start_program(CUDA_VISIBLE_DEVICES=visible)
        assert program.do("context") == 0
        assert [client.pid for client in machine.clients(index)] == [program.pid], visible
        assert program.leave() == 0
    assert start_program(CUDA_VISIBLE_DEVICES="7,0").do("init") == NO_DEVICE


def test_processes_without_mps_never_run_at_one_time(machine: SimulatedMachine, start_program: StartProgram) -> None:
    """Each has 40 ms of work, in slices of 2 ms: what one of them waits is what the other ran."""
    machine.start("T4")
    programs = [start_program(tag=tag) for tag in ("one", "two")]
    assert [program.do("context") for program in programs] == [0, 0]
    for program in programs:
        program.order("launch", 40 * MS, 10, 0)
        program.order("wait")
    assert [program.answer() for program in programs for _ in range(2)] == [0] * 4
    first, second = sorted(kernels(machine), key=started)
    assert first.ran_ns == second.ran_ns == 40 * MS
    begin, end = started(first), max(first.ended_ns, second.ended_ns)
    overlap = min(first.ended_ns, second.ended_ns) - started(second)
    assert end - begin == pytest.approx(80 * MS, abs=max(0, started(second) - first.ended_ns) + 1)
    if overlap > 8 * MS:  # the second began in time to share
        assert first.ended_ns - started(first) > 40 * MS


def test_clients_of_one_server_run_side_by_side(
    machine: SimulatedMachine, start_program: StartProgram, daemon: dict[str, str]
) -> None:
    programs = [start_program(**daemon) for _ in range(2)]
    assert [program.do("context") for program in programs] == [0, 0]
    for program in programs:
        assert program.do("launch", 500 * MS, 50, 0) == 0
    assert [program.do("wait") for program in programs] == [0, 0]
    first, second = sorted(kernels(machine), key=started)
    assert first.ended_ns - started(first) == second.ended_ns - started(second) == 500 * MS
    assert started(second) < first.ended_ns


def test_a_thread_percentage_caps_a_client(
    machine: SimulatedMachine, start_program: StartProgram, daemon: dict[str, str]
) -> None:
    program = start_program(CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="25", **daemon)
    assert program.do("context") == 0
    for sm_pct in (100, 20):
        assert program.do("launch", 10 * MS, sm_pct, 0) == 0
        assert program.do("wait") == 0
    wide, narrow = kernels(machine)
    assert wide.ended_ns - started(wide) == 40 * MS
    assert narrow.ended_ns - started(narrow) == 10 * MS


def test_a_thread_percentage_means_nothing_without_mps(machine: SimulatedMachine, start_program: StartProgram) -> None:
    machine.start("T4")
    program = start_program(CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="25")
    assert program.do("context") == 0
    assert program.do("launch", 10 * MS, 100, 0) == 0
    assert program.do("wait") == 0
    (kernel,) = kernels(machine)
    assert kernel.ended_ns - started(kernel) == 10 * MS


@pytest.mark.parametrize("how", ["kill", "exit", "leave"])
def test_memory_is_free_again_when_its_process_has_gone(
    machine: SimulatedMachine, start_program: StartProgram, how: str
) -> None:
    machine.start("T4")
    empty = machine.device(0).memory_used_bytes
    program = start_program()
    assert program.do("context") == 0
    assert program.do("allocate", 12 << 30) == 0
    other = start_program()
    assert other.do("context") == 0
    assert other.do("allocate", 4 << 30) == OUT_OF_MEMORY
    if how == "leave":
        assert program.leave() == 0
    elif how == "exit":  # without destroying its context
        program.close()
    else:
        program.kill()
    wait_until(lambda: len(machine.clients(0)) == 1)
    assert other.do("allocate", 4 << 30) == 0
    assert other.leave() == 0
    wait_until(lambda: machine.device(0).memory_used_bytes == empty)


@pytest.mark.parametrize("busy", [False, True])
def test_the_death_of_a_client_hurts_others_only_with_work_in_flight(
    machine: SimulatedMachine, start_program: StartProgram, daemon: dict[str, str], *, busy: bool
) -> None:
    victim, other = start_program(**daemon), start_program(**daemon)
    assert (victim.do("context"), other.do("context")) == (0, 0)
    assert victim.do("launch", 60_000 * MS if busy else MS, 10, 0) == 0
    if not busy:
        assert victim.do("wait") == 0
    assert other.do("launch", 60_000 * MS if busy else 50 * MS, 10, 0) == 0
    other.order("wait")
    victim.kill()
    assert other.answer() == (810 if busy else 0)


def test_an_exit_with_work_in_flight_is_a_death(
    machine: SimulatedMachine, start_program: StartProgram, daemon: dict[str, str]
) -> None:
    victim, other = start_program(**daemon), start_program(**daemon)
    assert (victim.do("context"), other.do("context")) == (0, 0)
    assert victim.do("launch", 60_000 * MS, 10, 0) == 0
    victim.close()
    assert other.do("launch", MS, 10, 0) == 810


def test_the_death_of_a_process_without_mps_hurts_nobody(
    machine: SimulatedMachine, start_program: StartProgram
) -> None:
    machine.start("T4")
    victim, other = start_program(), start_program()
    assert (victim.do("context"), other.do("context")) == (0, 0)
    assert victim.do("launch", 60_000 * MS, 10, 0) == 0
    assert other.do("launch", 50 * MS, 10, 0) == 0
    other.order("wait")
    victim.kill()
    assert other.answer() == 0


def test_a_lost_gpu_fails_everybody_until_it_is_restored(
    machine: SimulatedMachine, start_program: StartProgram
) -> None:
    machine.start("T4")
    program = start_program()
    assert program.do("context") == 0
    assert program.do("launch", 60_000 * MS, 10, 0) == 0
    program.order("wait")
    machine.lose(0)
    assert program.answer() == LOST
    assert start_program().do("context") == LOST
    machine.restore(0)
    assert program.do("wait") == LOST
    assert start_program().do("context") == 0


def test_a_slower_clock_is_felt_by_what_runs(machine: SimulatedMachine, start_program: StartProgram) -> None:
    machine.start("T4")
    program = start_program()
    assert program.do("context") == 0
    machine.set_clock(0, 1590 // 2)
    assert program.do("launch", 10 * MS, 100, 0) == 0
    assert program.do("wait") == 0
    machine.set_clock(0, None)
    assert program.do("launch", 10 * MS, 100, 0) == 0
    assert program.do("wait") == 0
    slow, fast = kernels(machine)
    assert slow.ended_ns - started(slow) == 20 * MS
    assert fast.ended_ns - started(fast) == 10 * MS


def test_waiting_processes_burn_no_cpu(machine: SimulatedMachine, start_program: StartProgram) -> None:
    machine.start("T4")
    programs = [start_program() for _ in range(2)]
    for program in programs:
        assert program.do("context") == 0
        assert program.do("launch", 400 * MS, 100, 0) == 0
    before = [cpu_s(program.pid) for program in programs]
    for program in programs:
        program.order("wait")
    assert [program.answer() for program in programs] == [0, 0]
    used = [cpu_s(program.pid) - start for program, start in zip(programs, before, strict=True)]
    assert max(used) < 0.1, "of 0.8 s"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_memory_and_events_are_shared_between_processes(machine: SimulatedMachine) -> None:
    machine.start("T4")
    command = [sys.executable, "-S", "-E", str(PROGRAMS / "run.py"), "sharing"]
    environ = {**os.environ, **machine.environment()}
    with subprocess.Popen(
        [*command, "_lend"], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as lender:
        assert lender.stdin is not None
        assert lender.stdout is not None
        handles = lender.stdout.readline()
        borrower = subprocess.run(
            [*command, "_borrow"], env=environ, input=handles, capture_output=True, text=True, timeout=30, check=False
        )
        assert borrower.returncode == 0, borrower.stderr
        lender.stdin.write("seen\n")
        lender.stdin.close()
        assert lender.wait(timeout=DEADLINE_S) == 0
