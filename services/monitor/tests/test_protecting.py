"""A monitor that never finds its bus protects all the same. What is asked is what offline gates see: the page."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from cuda_program import CudaProgram
from muxflow.contracts import DeviceCondition, Gpu
from muxflow_decisions.device import GateState
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_monitor.memory import DeviceMemories
from muxflow_simgpu import SimulatedMachine
from simulated_gpus import simulated
from watched_node import WatchedNode, until

MS_NS = 1_000_000


def open_gates(node: WatchedNode) -> bool:
    return all(node.look(index).gate.state is GateState.OPEN for index in range(len(node.uuids)))


async def healthy(node: WatchedNode) -> None:
    node.start()
    await until(lambda: open_gates(node), "every gate open")


def condition(node: WatchedNode, index: int = 0) -> DeviceCondition | None:
    return node.look(index).condition


async def test_gates_are_frozen_until_the_readings_are_known_and_open_then(lonely: WatchedNode) -> None:
    lonely.start()
    await until(lambda: lonely.look().fresh, "a heartbeat")
    assert lonely.look().gate.state is GateState.FROZEN
    await until(lambda: open_gates(lonely), "every gate open")
    assert condition(lonely) is DeviceCondition.HEALTHY


async def test_the_page_says_what_the_gpu_gives_and_nothing_else(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    t4, h200 = (lonely.look(index).report for index in (0, 1))
    assert t4 is not None
    assert h200 is not None
    assert (t4.sm_activity_permille, h200.sm_activity_permille) == (None, 0)
    assert t4.memory_total_bytes == machine.devices()[0].memory_bytes
    assert t4.online_activity_permille == h200.online_activity_permille == 0


async def test_a_stopped_monitor_is_stale_for_everybody_and_goes_on_where_it_was(lonely: WatchedNode) -> None:
    await healthy(lonely)
    lonely.send(signal.SIGSTOP)
    await until(lambda: not lonely.look().fresh, "a stale page")
    assert lonely.look().gate.state is GateState.FROZEN
    assert condition(lonely) is DeviceCondition.HEALTHY
    lonely.send(signal.SIGCONT)
    await until(lambda: open_gates(lonely), "every gate open again")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_an_ended_monitor_leaves_its_gate_to_go_stale(lonely: WatchedNode, number: signal.Signals) -> None:
    await healthy(lonely)
    assert lonely.end(number) == (0 if number is signal.SIGTERM else -number)
    await until(lambda: not lonely.look().fresh, "a stale page")
    assert lonely.look().gate.state is GateState.FROZEN


async def test_the_next_monitor_begins_anew_on_the_same_page_with_a_later_epoch(lonely: WatchedNode) -> None:
    await healthy(lonely)
    page = lonely.run.device(lonely.uuids[0]).device_page
    inode, epoch = page.stat().st_ino, lonely.look().epoch
    lonely.end()
    lonely.start()
    await until(lambda: lonely.look().epoch > epoch and open_gates(lonely), "a new monitor's open gates")
    assert page.stat().st_ino == inode


async def test_two_monitors_do_not_share_a_page(lonely: WatchedNode, tmp_path_factory: pytest.TempPathFactory) -> None:
    await healthy(lonely)
    second = WatchedNode(tmp_path_factory.mktemp("second"), lonely.machine, None)
    second.start()
    assert second.exit_code() == 1
    assert "is written by another process" in second.logged("cannot start")[0]["error"]
    assert lonely.look().fresh


async def test_a_page_that_is_removed_is_made_anew_with_its_gate(lonely: WatchedNode) -> None:
    await healthy(lonely)
    page = lonely.run.device(lonely.uuids[0]).device_page
    page.unlink()
    await until(page.exists, "a new page")
    await until(lambda: lonely.look().fresh and open_gates(lonely), "its gate")
    assert lonely.logged("the device page is made anew")


async def test_a_directory_of_beacon_pages_that_is_gone_is_made_anew(lonely: WatchedNode) -> None:
    await healthy(lonely)
    beacons = lonely.run.device(lonely.uuids[0]).beacons
    (beacons / f"{1:016x}").touch()
    await until(lambda: not any(beacons.iterdir()), "what nobody holds cleared away")
    beacons.rmdir()
    await until(lambda: beacons.exists() and stat.S_IMODE(beacons.stat().st_mode) == 0o1777, "another directory")
    assert lonely.logged("the directory of beacon pages is made anew")


async def test_a_lost_gpu_freezes_at_once_and_opens_after_it_has_been_calm(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    machine.lose(0)
    await until(lambda: condition(lonely) is DeviceCondition.OVERLIMIT, "Overlimit")
    view = lonely.look()
    assert (view.gate.state, view.fresh) == (GateState.FROZEN, True)
    assert view.report is not None
    assert view.report.hard
    assert view.report.memory_used_bytes is None
    assert condition(lonely, 1) is DeviceCondition.HEALTHY
    machine.restore(0)
    await until(lambda: condition(lonely) is DeviceCondition.HEALTHY, "calm")


async def test_a_gpu_that_is_lost_when_the_monitor_starts_is_watched_and_found(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    lonely.end()
    machine.lose(0)
    lonely.start()
    await until(lambda: lonely.look().fresh, "a heartbeat for the lost GPU")
    await until(lambda: condition(lonely) is DeviceCondition.OVERLIMIT, "Overlimit")
    machine.restore(0)
    await until(lambda: condition(lonely) is DeviceCondition.HEALTHY, "calm")


async def test_online_work_shows_on_the_page_and_takes_the_budget_back(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    budget = lonely.look(1).gate.budget_permille
    with CudaProgram({**machine.environment(), "CUDA_VISIBLE_DEVICES": "1"}) as program:
        assert program.do("context") == 0
        program.do("launch", 60_000 * MS_NS, 80, 0)
        await until(lambda: condition(lonely, 1) is DeviceCondition.UNHEALTHY, "Unhealthy")
        view = lonely.look(1)
        assert view.gate.budget_permille < budget
        assert view.report is not None
        assert view.report.online_activity_permille is not None
        assert view.report.online_activity_permille >= 700
        assert "online activity" in view.report.cause
        assert condition(lonely) is DeviceCondition.HEALTHY
    await until(lambda: condition(lonely, 1) is DeviceCondition.HEALTHY, "calm")


async def test_a_fault_that_takes_all_mps_clients_down_or_the_gpu_freezes_it(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    machine.inject_xid(1, 48)
    await until(lambda: condition(lonely, 1) is DeviceCondition.OVERLIMIT, "Overlimit")
    report = lonely.look(1).report
    assert report is not None
    assert report.cause == "fault: xid 48, double-bit ECC error"


async def test_an_applications_fault_without_mps_changes_nothing(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    machine.inject_xid(1, 31)
    await until(lambda: lonely.metric("muxflow_monitor_faults_total", gpu=lonely.uuids[1], kind="xid"), "the fault")
    assert condition(lonely, 1) is DeviceCondition.HEALTHY


async def test_calm_that_is_owed_is_not_forgotten_by_the_next_monitor(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    await healthy(lonely)
    machine.lose(0)
    await until(lambda: condition(lonely) is DeviceCondition.OVERLIMIT, "Overlimit")
    await until(lambda: _kept(lonely).overlimits, "that it is kept")
    lonely.end()
    machine.restore(0)
    began = time.monotonic()
    lonely.start()
    await until(lambda: condition(lonely) is DeviceCondition.HEALTHY, "calm")
    assert time.monotonic() - began > 2  # what the first Overlimit costs; a fresh device opens after 0.2 s


def _kept(node: WatchedNode) -> DeviceMemory:
    memories = DeviceMemories(node.state_dir)
    return memories.load()[node.uuids[0]].memory


async def test_a_memory_of_another_boot_is_forgotten(lonely: WatchedNode, machine: SimulatedMachine) -> None:
    device = machine.devices()[0]
    memories = DeviceMemories(lonely.state_dir)
    memories.open()
    gpu = Gpu(uuid=device.uuid, kind="T4", memory_bytes=device.memory_bytes)
    memories.save(gpu, DeviceMemory(condition=DeviceCondition.OVERLIMIT, hard=True, epoch=400), disabled=None)
    file = next((lonely.state_dir / "devices").iterdir())
    file.write_text(file.read_text().replace(_boot_id(), "another"))
    await healthy(lonely)
    assert lonely.look().epoch < 10


async def test_a_device_that_was_enabled_in_the_moment_of_the_kill_is_enabled(
    lonely: WatchedNode, machine: SimulatedMachine
) -> None:
    device = machine.devices()[0]
    memories = DeviceMemories(lonely.state_dir)
    memories.open()
    gpu = Gpu(uuid=device.uuid, kind="T4", memory_bytes=device.memory_bytes)
    memories.save(gpu, DeviceMemory(condition=DeviceCondition.DISABLED, epoch=400), disabled=None)
    await healthy(lonely)
    assert lonely.look().epoch == 403  # a monitor starts, enabled, calm


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_a_memory_that_is_garbage_is_forgotten_and_logged(lonely: WatchedNode) -> None:
    (lonely.state_dir / "devices").mkdir(parents=True)
    (lonely.state_dir / "devices" / "x.json").write_text("{")
    await healthy(lonely)
    assert lonely.logged("a device's memory cannot be read")


async def test_readiness_says_whether_every_gpu_is_looked_at(lonely: WatchedNode) -> None:
    await healthy(lonely)
    assert lonely.http("/readyz") == (200, "ok\n")


async def test_metrics_tell_state_gate_budget_and_looks(lonely: WatchedNode) -> None:
    await healthy(lonely)
    uuid = lonely.uuids[0]
    assert lonely.metric("muxflow_device_condition", gpu=uuid, state="healthy") == 1
    assert lonely.metric("muxflow_device_condition", gpu=uuid, state="overlimit") == 0
    assert lonely.metric("muxflow_device_gate", gpu=uuid) == 2
    await until(lambda: lonely.metric("muxflow_device_budget_permille", gpu=uuid) == 900, "the whole budget")
    assert lonely.metric("muxflow_monitor_look_seconds_count", gpu=uuid) > 1
    assert lonely.metric("muxflow_bus_connected") == 0
    assert lonely.metric("muxflow_monitor_outbox_events") >= 4


@pytest.mark.bench
async def test_a_monitor_of_eight_gpus_stays_small(tmp_path: Path) -> None:
    with simulated(*["T4"] * 4, *["H200"] * 4) as machine:
        node = WatchedNode(tmp_path, machine, None)
        await healthy(node)
        began_s, cpu_s = time.monotonic(), _cpu_s(node.pid)
        await until(lambda: time.monotonic() - began_s > 3, "three seconds of looks")
        share = (_cpu_s(node.pid) - cpu_s) / (time.monotonic() - began_s)
        rss_mib = int(_status(node.pid, "VmRSS")) / 1024
        node.close()
    assert rss_mib < 60
    assert share < 0.15  # 3.1% was measured; caches are colder on a busier machine


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


async def test_a_node_without_gpus_is_told_so(lonely: WatchedNode, machine: SimulatedMachine) -> None:
    machine.stop()
    machine.directory.mkdir(exist_ok=True)
    lonely.start()
    assert lonely.exit_code() == 1
    assert lonely.logged("cannot start")[0]["error"] == "NVML lists no GPU on this node"


async def test_a_workload_on_a_gpu_that_is_not_there_is_told_at_the_start(
    machine: SimulatedMachine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    online = {"chat": {"gpu": 9, "match": "serve"}}
    node = WatchedNode(tmp_path_factory.mktemp("wrong"), machine, None, online=online)
    node.start()
    assert node.exit_code() == 1
    assert "online workload chat: there is no GPU 9 here" in node.logged("cannot start")[0]["error"]


async def test_a_run_directory_that_cannot_be_used_is_told_at_the_start(
    machine: SimulatedMachine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = WatchedNode(tmp_path_factory.mktemp("wrong"), machine, None, run_dir=os.devnull)
    node.start()
    assert node.exit_code() == 1
    assert "monitor.run_dir /dev/null" in node.logged("cannot start")[0]["error"]
