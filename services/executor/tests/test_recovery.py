"""What a restarted executor makes of what it finds: whatever died, and at whatever moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executing_node import GPU, Node, alive, slot_of, until
from muxflow.attempts import directory_name
from muxflow.contracts import Attempt, RunExited, RunStarted, StopCause
from muxflow_decisions.node import LocalState
from muxflow_executor.attempts import (
    AttemptDirectory,
    AttemptStore,
    Ended,
    Intent,
    ProcessRecord,
    Started,
    StopRequest,
    read_record,
    write_record,
)
from muxflow_executor.recovery import recover
from muxflow_executor.shim.records import boot_id

ANOTHER_BOOT = "11111111-2222-3333-4444-555555555555"


async def test_restarted_executor_adopts_what_runs(node: Node) -> None:
    slot = node.start("sleep", "1000")
    pid = (await node.fact(RunStarted)).pid
    await node.restart()
    assert node.runner.local[slot.key].state in (LocalState.STARTING, LocalState.RUNNING)
    node.told.clear()
    assert (await node.fact(RunStarted)).pid == pid
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.signal == "SIGTERM"


async def test_exit_during_the_executors_absence_is_told_truthfully(node: Node, tmp_path: Path) -> None:
    node.start("sh", "-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 9")
    await node.fact(RunStarted)
    await node.runner.close()
    (tmp_path / "go").touch()
    await until((node.directory() / "exit.json").exists)
    await node.restart()
    assert (await node.fact(RunExited)).exit.code == 9


async def test_stop_that_was_asked_for_goes_on_after_a_restart(node: Node) -> None:
    slot = node.start("sleep", "1000")
    await node.fact(RunStarted)
    node.attempt().request_stop(StopRequest(cause=StopCause.EVICTION))
    await node.restart()
    assert node.runner.local[slot.key].state in (LocalState.STOPPING, LocalState.ENDED)
    assert (await node.fact(RunExited)).exit.stopped_by is StopCause.EVICTION


async def test_unreported_exit_is_told_again_and_a_reported_one_is_not(node: Node) -> None:
    first = await node.exit_of("true", job="a")
    await node.exit_of("true", job="b")
    node.runner.mark_reported(Attempt(tenant="default", job="b", attempt=1))
    await until((node.directory("b") / "reported").exists)
    await node.restart()
    node.told.clear()
    assert (await node.fact(RunExited, "a")).id == first.id
    assert node.runner.facts.empty()


async def test_forgotten_attempt_leaves_its_output_and_is_never_started_again(node: Node, tmp_path: Path) -> None:
    slot = node.start("sh", "-c", f"echo once; echo x >> {tmp_path}/starts")
    await node.fact(RunExited)
    node.runner.forget(slot.key)
    await until(lambda: not node.runner.runs)
    kept = sorted(path.name for path in (node.state_dir / "ended" / "default.job.1").iterdir())
    assert kept == ["exit.json", "output.0000000000000000", "submission.json"]
    node.told.clear()
    node.runner.start(slot, GPU)
    assert (await node.fact(RunExited)).exit.lost
    assert (tmp_path / "starts").read_text() == "x\n"


async def test_job_submitted_anew_under_an_old_name_runs_and_inherits_nothing(node: Node) -> None:
    command = ("sh", "-c", 'cat "$MUXFLOW_CHECKPOINT_DIR/state"; echo saved > "$MUXFLOW_CHECKPOINT_DIR/state"')
    first = msgspec.structs.replace(slot_of(*command), submission_id="s1")
    for slot in (first, msgspec.structs.replace(first, attempt=2)):
        node.runner.start(slot, GPU)
        await node.fact(RunExited)
        node.told.clear()
        node.runner.forget(slot.key)
        await until(lambda: not node.runner.runs)
    anew = msgspec.structs.replace(first, submission_id="s2")
    node.runner.start(anew, GPU)
    assert (await node.fact(RunExited)).exit.succeeded
    node.runner.forget(anew.key)
    await until(lambda: not node.runner.runs)
    found = node.store.output_of("default", "job", None)
    assert found is not None
    assert found[0] == 1
    assert "No such file" in (found[1] / "output.0000000000000000").read_text()


async def test_facts_of_jobs_whose_names_join_to_the_same_have_ids_of_their_own(node: Node) -> None:
    slots = [
        msgspec.structs.replace(slot_of("true", job=job), tenant=tenant)
        for tenant, job in (("team", "ml.train"), ("team.ml", "train"))
    ]
    ids = set()
    for slot in slots:
        node.runner.start(slot, GPU)
        ids.add((await node.fact(RunExited, slot.job)).id)
    assert len({ident.replace("=2E", ".").rsplit(".", 2)[0] for ident in ids}) == 1
    assert len(ids) == 2


async def test_killed_shim_takes_its_program_along_and_the_exit_is_lost(node: Node, tmp_path: Path) -> None:
    node.start("sh", "-c", f"setsid sleep 1000 & echo $! > {tmp_path}/daemon; echo ready; sleep 1000")
    pid = (await node.fact(RunStarted)).pid
    await until(lambda: node.output() == "ready\n")
    os.kill(node.shim_pid(), signal.SIGKILL)
    exited = await node.fact(RunExited)
    assert exited.exit.lost
    assert exited.started_ns > 0
    assert not alive(pid)
    assert not alive(int((tmp_path / "daemon").read_text()))


async def test_shim_killed_while_no_executor_runs_leaves_nothing_all_the_same(node: Node, tmp_path: Path) -> None:
    """Else something of this attempt could live on while the next one runs on another node."""
    node.start("sh", "-c", f"setsid sleep 1000 & echo $! > {tmp_path}/daemon; echo ready; sleep 1000")
    pid = (await node.fact(RunStarted)).pid
    await until(lambda: node.output() == "ready\n")
    await node.runner.close()
    os.kill(node.shim_pid(), signal.SIGKILL)
    daemon = int((tmp_path / "daemon").read_text())
    await until(lambda: not alive(pid) and not alive(daemon), 5)


async def test_shim_and_executor_killed_together_leave_nothing_after_the_restart(node: Node, tmp_path: Path) -> None:
    node.start("sh", "-c", f"(sleep 1000 & echo $! > {tmp_path}/child); echo ready; sleep 1000")
    pid = (await node.fact(RunStarted)).pid
    await until(lambda: node.output() == "ready\n")
    await node.runner.close()
    os.kill(node.shim_pid(), signal.SIGKILL)
    await node.restart()
    assert (await node.fact(RunExited)).exit.lost
    assert not alive(pid)
    assert not alive(int((tmp_path / "child").read_text()))


async def test_attempt_of_an_earlier_boot_is_lost_and_nobody_is_killed_for_it(node: Node) -> None:
    bystander = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        directory = node.store.create(intent_of(boot=ANOTHER_BOOT))
        write_process_records(directory, bystander.pid, ANOTHER_BOOT)
        await node.restart()
        exited = await node.fact(RunExited)
        assert (exited.exit.lost, exited.started_ns) == (True, 5)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_process_that_got_the_number_of_a_dead_one_is_left_alone(node: Node) -> None:
    bystander = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        directory = node.store.create(intent_of())
        write_process_records(directory, bystander.pid, boot_id())
        await node.restart()
        assert (await node.fact(RunExited)).exit.lost
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("name", ["intent.json", "shim.json", "started.json", "stop.json", "exit.json"])
async def test_torn_file_is_one_clear_line_and_the_exit_is_told(
    node: Node, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    await node.exit_of("true")
    node.told.clear()
    (node.directory() / name).write_text('{"torn')
    if name != "exit.json":
        (node.directory() / "exit.json").unlink()
    await node.restart()
    exited = await node.fact(RunExited)
    assert exited.exit.lost
    lines = [line for line in capfd.readouterr().out.splitlines() if "record unreadable" in line]
    assert lines
    assert all(name in line and "default.job.1" in line for line in lines)


async def test_torn_shim_record_of_a_living_shim_does_not_end_its_program(node: Node) -> None:
    slot = node.start("sleep", "1000")
    pid = (await node.fact(RunStarted)).pid
    (node.directory() / "shim.json").write_text("")
    await node.restart()
    assert alive(pid)
    node.runner.stop(slot.key, StopCause.DECISION)
    assert (await node.fact(RunExited)).exit.signal == "SIGTERM"


async def test_full_disk_starts_nothing_says_so_once_and_recovers(
    node: Node, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    full = True
    real = node.store.create

    def create(intent: Intent, ended: Ended | None = None) -> AttemptDirectory:
        if full:
            raise OSError(28, "No space left on device")
        return real(intent, ended)

    monkeypatch.setattr(node.store, "create", create)
    monkeypatch.setattr("muxflow_executor.process_runner._RETRY_S", 0.02)
    for _ in range(3):
        node.start("true")
        await until(lambda: not node.runner.runs)
    full = False
    node.start("true")
    assert (await node.fact(RunExited)).exit.succeeded
    complaints = [line for line in capfd.readouterr().out.splitlines() if "cannot record an attempt" in line]
    assert len(complaints) == 1
    assert "No space left on device" in complaints[0]


CRASHING_EXECUTOR = """
import asyncio, os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from executing_node import Node, slot_of
from muxflow_executor import launch, process_runner, spare
from muxflow_executor.attempts import AttemptStore

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(owner, name):
    real = getattr(owner, name)
    def wrapper(*arguments):
        real(*arguments)
        die()
    setattr(owner, name, wrapper)

point = sys.argv[1]
if point == "before the intent":
    AttemptStore.create = die
elif point == "while the intent is written":
    Path.rename = die
elif point == "after the intent":
    die_after(AttemptStore, "create")
elif point == "while handing over":
    def hand_over(shim, directory, environment):
        os.write(shim.handover_fd, spare.pack(str(directory), environment)[:-1])
        die()
    spare.hand_over = hand_over
elif point == "after handing over":
    die_after(spare, "hand_over")
elif point == "when started":
    process_runner.ProcessRunner._began = die
elif point == "when ended":
    process_runner.ProcessRunner._end = die

async def main():
    node = Node(Path({root!r}))
    await node.runner.open()
    node.start("sh", "-c", "echo $$ >> {root}/starts; sleep 0.2")
    await asyncio.sleep(30)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("point", "recorded"),
    [
        ("before the intent", False),
        ("while the intent is written", False),
        ("after the intent", True),
        ("while handing over", True),
        ("after handing over", True),
        ("when started", True),
        ("when ended", True),
    ],
)
async def test_executor_killed_at_any_step_starts_nothing_twice_and_tells_every_exit(
    tmp_path: Path, point: str, recorded: bool
) -> None:
    root = tmp_path / "node"
    root.mkdir()
    code = CRASHING_EXECUTOR.format(paths=[path for path in sys.path if path], root=str(root))
    killed = subprocess.run([sys.executable, "-c", code, point], timeout=30, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (root / "state").rename(root / "kept")
    node = Node(root)
    shutil.rmtree(root / "state")
    (root / "kept").rename(root / "state")
    node.hold_lease(120)
    try:
        await node.runner.open()
        slot = slot_of("sh", "-c", f"echo $$ >> {root}/starts; sleep 0.2")
        assert (slot.key in node.runner.runs) is recorded
        node.runner.start(slot, GPU)  # as reconciling would, were it not known
        exited = await node.fact(RunExited)
        starts = (root / "starts").read_text().split() if (root / "starts").exists() else []
        assert len(starts) <= 1
        assert exited.exit.succeeded is (len(starts) == 1)
        assert exited.exit.lost is (len(starts) == 0)
    finally:
        await node.end()


FILES = ("intent.json", "shim.json", "started.json", "stop.json", "exit.json", "reported")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    present=st.sets(st.sampled_from(FILES)),
    torn=st.sets(st.sampled_from(FILES)),
    boot=st.sampled_from([boot_id(), ANOTHER_BOOT]),
)
def test_whatever_files_are_there_the_end_of_a_dead_attempt_is_known_and_stays_the_same(
    tmp_path: Path, present: set[str], torn: set[str], boot: str
) -> None:
    state = tmp_path / f"{time.monotonic_ns()}"
    store = AttemptStore(state)
    store.prepare()
    directory = store.create(intent_of(boot=boot))
    write_process_records(directory, 2**22 + 1, boot)
    write_record(directory.path / "stop.json", StopRequest(cause=StopCause.EVICTION))
    write_record(directory.path / "exit.json", Ended(code=3, started_ns=5, ended_ns=6))
    directory.mark_reported()
    for name in FILES:
        if name not in present:
            (directory.path / name).unlink()
        elif name in torn:
            (directory.path / name).write_bytes((directory.path / name).read_bytes()[:-2])
    (found,) = store.scan()
    assert found.key == directory.key
    ended = recover(found)
    assert isinstance(ended, Ended)
    whole = present - torn
    assert ended.lost is ("exit.json" not in whole)
    if ended.lost:
        assert ended.started_ns == (5 if "started.json" in whole else 0)
        assert ended.stopped_by == (StopCause.EVICTION if "stop.json" in whole else None)
    assert found.reported is ("reported" in present)
    assert recover(next(store.scan())) == ended


def test_names_too_long_for_a_file_still_make_distinct_directories(tmp_path: Path) -> None:
    store = AttemptStore(tmp_path)
    store.prepare()
    jobs = ["a" + "." * 126 + last for last in "bc"]
    for job in jobs:
        store.create(msgspec.structs.replace(intent_of(), attempt=Attempt(tenant="t" * 128, job=job, attempt=1)))
    assert sorted(found.key.job for found in store.scan()) == jobs
    assert all(len(directory_name(found.key)) < 250 for found in store.scan())
    assert store.output_of("t" * 128, jobs[0], None) is not None


def test_unfinished_directories_are_dropped_and_strangers_are_left_alone(tmp_path: Path) -> None:
    store = AttemptStore(tmp_path)
    store.prepare()
    (tmp_path / "attempts" / ".new-default.job.1").mkdir()
    (tmp_path / "attempts" / "lost+found").mkdir()
    store.prepare()
    assert list(store.scan()) == []
    assert [path.name for path in (tmp_path / "attempts").iterdir()] == ["lost+found"]


def test_old_outputs_go_when_there_are_too_many_or_they_are_too_large(tmp_path: Path) -> None:
    store = AttemptStore(tmp_path)
    store.prepare()
    for number in range(1, 6):
        attempt = Attempt(tenant="t", job="j", attempt=number)
        directory = store.create(msgspec.structs.replace(intent_of(), attempt=attempt))
        (directory.path / "output.0000000000000000").write_bytes(b"x" * 100)
        store.forget(directory)
        os.utime(tmp_path / "ended" / f"t.j.{number}", (number, number))
    store.prune(outputs=4, output_bytes=250, checkpoint_age_s=0)
    assert sorted(path.name for path in (tmp_path / "ended").iterdir()) == ["t.j.4", "t.j.5"]


def test_checkpoints_go_when_long_unused_and_no_attempt_of_the_job_is_here(tmp_path: Path) -> None:
    store = AttemptStore(tmp_path)
    store.prepare()
    for job in ("job", "gone"):
        os.utime(store.checkpoint_dir("default", job, ""), (1, 1))
    store.create(intent_of())
    store.prune(outputs=1, output_bytes=1, checkpoint_age_s=60)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["default.job"]


def test_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stop.json"
    write_record(path, StopRequest(cause=StopCause.LEASE))

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_record(path, StopRequest(cause=StopCause.EVICTION))
    assert read_record(path, StopRequest) == StopRequest(cause=StopCause.LEASE)
    assert [path.name for path in tmp_path.iterdir()] == ["stop.json"]


def write_process_records(directory: AttemptDirectory, pid: int, boot: str) -> None:
    """As a shim would have, long ago: whoever has the number now started later."""
    write_record(directory.path / "shim.json", ProcessRecord(pid=pid, start_ticks=1, boot_id=boot))
    started = Started(pid=pid, start_ticks=1, boot_id=boot, pgid=pid, time_ns=5, boottime_ns=1)
    write_record(directory.path / "started.json", started)


def intent_of(*, boot: str | None = None) -> Intent:
    return Intent(
        attempt=Attempt(tenant="default", job="job", attempt=1),
        node="node.a",
        gpu=GPU,
        run_id="0" * 32,
        boot_id=boot or boot_id(),
        created_ns=1,
    )
