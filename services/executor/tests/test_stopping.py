"""How attempts are stopped: asked, by the lease, with a checkpoint, and however stubborn they are."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from executing_node import CHECKPOINT, SAVES_ON_SIGNAL, Node, alive, python, until
from muxflow.contracts import RunCheckpointed, RunEvicted, RunExited, RunStarted, Slot, StopCause
from muxflow_executor.run import Run

IGNORES_SIGTERM = 'trap "" TERM; echo ready; while :; do sleep 0.05; done'


def send_but_wake(run: Run, number: signal.Signals) -> None:
    if number != signal.SIGCONT and run._pidfd is not None:
        signal.pidfd_send_signal(run._pidfd, number)


async def running(node: Node, slot: Slot) -> RunStarted:
    started: RunStarted = await node.fact(RunStarted, slot.job)
    return started


async def test_stopped_program_is_told_with_its_cause(node: Node) -> None:
    slot = node.start("sleep", "1000")
    await running(node, slot)
    node.runner.stop(slot.key, StopCause.EVICTION, "online needs the GPU")
    assert (await node.fact(RunEvicted)).reason == "online needs the GPU"
    status = (await node.fact(RunExited)).exit
    assert (status.signal, status.stopped_by) == ("SIGTERM", StopCause.EVICTION)


async def test_program_that_ends_well_after_sigterm_has_not_succeeded(node: Node) -> None:
    slot = node.start("sh", "-c", 'trap "exit 0" TERM; echo ready; while :; do sleep 0.02; done')
    await until(lambda: node.output() == "ready\n")
    node.runner.stop(slot.key, StopCause.DECISION)
    status = (await node.fact(RunExited)).exit
    assert (status.code, status.stopped_by, status.succeeded) == (0, StopCause.DECISION, False)


async def test_program_that_ignores_sigterm_is_killed_after_its_grace(node: Node) -> None:
    slot = node.start("sh", "-c", IGNORES_SIGTERM, stop_grace_s=0.3)
    await until(lambda: node.output() == "ready\n")
    asked = time.monotonic()
    node.runner.stop(slot.key, StopCause.DECISION)
    status = (await node.fact(RunExited)).exit
    assert (status.signal, status.stopped_by) == ("SIGKILL", StopCause.DECISION)
    assert 0.3 <= time.monotonic() - asked < 3


async def test_frozen_program_is_stopped_too(node: Node) -> None:
    slot = node.start("sleep", "1000", stop_grace_s=0.2)
    started = await running(node, slot)
    os.kill(started.pid, signal.SIGSTOP)
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.stopped_by is StopCause.DECISION


async def test_frozen_shim_is_woken_to_stop(node: Node) -> None:
    slot = node.start("sleep", "1000")
    await running(node, slot)
    os.kill(node.shim_pid(), signal.SIGSTOP)
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.signal == "SIGTERM"


async def test_shim_that_never_gets_to_start_its_program_is_killed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the program lies on a file system that has gone away."""
    monkeypatch.setattr("muxflow_executor.stopping._HUNG_S", 0.2)
    (waiting,) = node.processes()
    os.kill(waiting, signal.SIGSTOP)
    monkeypatch.setattr("muxflow_executor.run.Run.send", send_but_wake)
    slot = node.start("sleep", "1000", stop_grace_s=0.1)
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.lost


async def test_stop_before_the_program_started_keeps_it_from_starting_or_ends_it(node: Node) -> None:
    slot = node.start("sleep", "1000")
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.stopped_by is StopCause.DECISION


async def test_sigint_and_sighup_do_not_end_the_shim(node: Node) -> None:
    slot = node.start("sleep", "1000")
    await running(node, slot)
    os.kill(node.shim_pid(), signal.SIGINT)
    os.kill(node.shim_pid(), signal.SIGHUP)
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.signal == "SIGTERM"


async def test_job_that_handles_the_signal_saves_before_it_is_stopped(node: Node) -> None:
    slot = node.start(*python(SAVES_ON_SIGNAL), checkpoint=CHECKPOINT)
    await until(lambda: node.output() == "ready\n")
    node.runner.stop(slot.key, StopCause.EVICTION)
    saved = await node.fact(RunCheckpointed)
    exited = await node.fact(RunExited)
    assert saved.asked_ns > 0
    assert exited.exit.signal == "SIGTERM"
    assert [type(event) for event in node.told] == [RunStarted, RunEvicted, RunCheckpointed, RunExited]


async def test_job_that_does_not_handle_the_signal_never_gets_it(node: Node) -> None:
    slot = node.start("sleep", "1000", checkpoint=CHECKPOINT)
    await running(node, slot)
    node.runner.stop(slot.key, StopCause.EVICTION)
    exited = await node.fact(RunExited)
    assert exited.exit.signal == "SIGTERM"  # SIGUSR2 would have killed it
    assert not any(isinstance(event, RunCheckpointed) for event in node.told)


async def test_job_that_never_says_it_saved_is_stopped_after_the_grace(node: Node) -> None:
    checkpoint = msgspec.structs.replace(CHECKPOINT, grace_s=0.2)
    code = "import signal, time; signal.signal(signal.SIGUSR2, lambda *_: None); print('ready', flush=True)\n"
    slot = node.start(*python(code + "while True: time.sleep(60)"), checkpoint=checkpoint)
    await until(lambda: node.output() == "ready\n")
    node.runner.stop(slot.key, StopCause.EVICTION)
    assert (await node.fact(RunExited)).exit.signal == "SIGTERM"


async def test_no_checkpoint_is_asked_for_when_the_lease_is_lost(node: Node) -> None:
    slot = node.start(*python(SAVES_ON_SIGNAL), checkpoint=CHECKPOINT)
    await until(lambda: node.output() == "ready\n")
    node.runner.stop(slot.key, StopCause.LEASE)
    assert (await node.fact(RunExited)).exit.stopped_by is StopCause.LEASE
    assert not (node.directory() / "checkpointed").exists()


async def test_job_is_asked_to_save_every_so_often(node: Node) -> None:
    slot = node.start(*python(SAVES_ON_SIGNAL), checkpoint=msgspec.structs.replace(CHECKPOINT, every_s=0.1))
    saved = await node.fact(RunCheckpointed)
    assert saved.asked_ns > 0
    assert ".node=2Ea.default.job.1." in saved.id
    node.runner.stop(slot.key, StopCause.LEASE)


async def test_job_that_saves_by_itself_is_heard(node: Node) -> None:
    node.start("sh", "-c", 'touch "$MUXFLOW_CHECKPOINT_MARK"; sleep 1000')
    assert (await node.fact(RunCheckpointed)).asked_ns == 0


async def test_checkpoints_survive_from_attempt_to_attempt(node: Node) -> None:
    await node.exit_of("sh", "-c", 'echo epoch 3 > "$MUXFLOW_CHECKPOINT_DIR/state"')
    node.told.clear()
    node.start("sh", "-c", 'cat "$MUXFLOW_CHECKPOINT_DIR/state"', attempt=2)
    await node.fact(RunExited)
    assert (node.directory(attempt=2) / "output.0000000000000000").read_text() == "epoch 3\n"


@pytest.fixture
async def leased(tmp_path: Path) -> AsyncIterator[Node]:
    """A node whose lease is short."""
    node = Node(tmp_path, lease_s=0.8, lease_grace_s=0.4)
    await node.runner.open()
    yield node
    await node.end()


async def test_program_ends_in_time_when_the_lease_does(leased: Node) -> None:
    leased.hold_lease(0.8)
    began = time.monotonic()
    leased.start("sh", "-c", IGNORES_SIGTERM, stop_grace_s=30)
    status = (await leased.fact(RunExited)).exit
    assert (status.signal, status.stopped_by) == ("SIGKILL", StopCause.LEASE)
    assert 0.8 + 0.4 <= time.monotonic() - began < 0.8 + 0.4 + 1.0


async def test_program_ends_with_the_lease_though_the_executor_is_dead(leased: Node) -> None:
    leased.hold_lease(0.8)
    slot = leased.start("sleep", "1000")
    pid = (await running(leased, slot)).pid
    await leased.runner.close()
    await until(lambda: not alive(pid), 3)
    await until((leased.directory() / "exit.json").exists)


async def test_lease_that_goes_on_keeps_the_program_alive(leased: Node) -> None:
    leased.hold_lease(0.5)
    slot = leased.start("sleep", "1000")
    pid = (await running(leased, slot)).pid
    began = time.monotonic()
    while time.monotonic() < began + 1.2:
        leased.hold_lease(0.5)
        await asyncio.sleep(0.05)
    assert alive(pid)


async def test_lease_file_that_vanishes_counts_as_expired_only_at_its_last_deadline(leased: Node) -> None:
    leased.hold_lease(0.8)
    began = time.monotonic()
    slot = leased.start("sleep", "1000")
    await running(leased, slot)
    leased.settings.lease_path.unlink()
    assert (await leased.fact(RunExited)).exit.stopped_by is StopCause.LEASE
    assert time.monotonic() - began >= 0.7


async def test_stop_that_has_begun_is_not_taken_back_by_a_new_lease(leased: Node) -> None:
    leased.hold_lease(0.3)
    leased.start("sh", "-c", 'trap "echo asked" TERM; echo ready; while :; do sleep 0.02; done', stop_grace_s=30)
    await until(lambda: "asked" in leased.output())
    leased.hold_lease(120)
    assert (await leased.fact(RunExited)).exit.stopped_by is StopCause.LEASE


async def test_nothing_starts_after_the_lease(leased: Node, tmp_path: Path) -> None:
    leased.hold_lease(-1)
    exited = await leased.exit_of("touch", str(tmp_path / "started"))
    assert exited.exit.stopped_by is StopCause.LEASE
    assert exited.exit.error == "not started: the node's lease had expired"
    assert not (tmp_path / "started").exists()


async def test_lease_of_an_earlier_boot_is_none(leased: Node) -> None:
    leased.settings.lease_path.write_text("11111111-2222-3333-4444-555555555555 9999999999999999999\n")
    assert (await leased.exit_of("true")).exit.stopped_by is StopCause.LEASE
