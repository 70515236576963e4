"""Attempts under xCUDA: their pages, their environment, and the steps of their stops.

No GPU is needed: programs of these tests write their own slots into the job page, as xCUDA would.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from ctypes import sizeof
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executing_node import CHECKPOINT, GPU, Node, alive, until
from muxflow.contracts import (
    Attempt,
    ExitStatus,
    RunCheckpointed,
    RunEvicted,
    RunExited,
    RunStarted,
    Slot,
    StopCause,
    decode,
    encode,
)
from muxflow_decisions.device.gate import GateState, JobPhase
from muxflow_decisions.eviction import LadderPolicy, Step
from muxflow_device import native
from muxflow_device.pages import JobControl, JobOrder
from muxflow_device.pages.layout import RawJobPage, RawProcessSlot
from muxflow_device.processes import owner_of
from muxflow_device.rundir import RunDirectory
from muxflow_executor.attempts import Started
from muxflow_executor.protection import Protection
from muxflow_executor.run import Run
from muxflow_executor.stopping import clear_away

ON_GPU = '''
import os, signal, sys, time
from muxflow_device.pages import JobControl
from muxflow_device.pages.layout import RawJobPage, RawProcessSlot
from muxflow_device.processes import owner_of
from pathlib import Path

PAGE = Path(os.environ["XCUDA_JOB_DIR"]) / "job"

def say(inflight, drained=0):
    """As xCUDA would, of this process."""
    slot = RawProcessSlot(owner=owner_of(os.getpid()), inflight=inflight, drained=drained)
    position = 0 if os.getpgid(0) == os.getpid() else 1
    with PAGE.open("r+b") as page:
        page.seek(RawJobPage.slots.offset + position * len(bytes(slot)))
        page.write(bytes(slot))

def gate():
    order = JobControl.read(PAGE.with_name("control")).order
    return f"{order.gate.state.name} {order.phase.name}"
'''
"""Begins the program of a job that uses the GPU."""


def on_gpu(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", ON_GPU + code)


@pytest.fixture
async def protected(tmp_path: Path, run: RunDirectory) -> AsyncIterator[Node]:
    node = Node(tmp_path, run=run, ladder=LadderPolicy(kill_again_s=0.1, disconnect_s=0.2))
    await node.runner.open()
    yield node
    await node.end()


def control(run: RunDirectory, slot: Slot) -> JobControl:
    return JobControl.read(run.job(slot.key).control_page)


def order(run: RunDirectory, slot: Slot) -> JobOrder:
    return control(run, slot).order


async def steps(node: Node, slot: Slot) -> list[Step]:
    descent = node.runner.runs[slot.key].descent
    assert descent is not None
    async with asyncio.timeout(10):
        return [passed.step async for passed in descent.follow()]


async def test_program_finds_its_pages_and_the_library_that_obeys_them(protected: Node, run: RunDirectory) -> None:
    slot = protected.start(
        sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)), flush=True)", sm_share_pct=35
    )
    await protected.fact(RunExited)
    seen = json.loads(protected.output())
    device, job = run.device(GPU).path, run.job(slot.key).path
    assert seen["LD_PRELOAD"] == str(native.path("libxcuda.so"))
    assert (seen["XCUDA_DEVICE_DIR"], seen["XCUDA_JOB_DIR"]) == (str(device), str(job))
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]) == (GPU, "35")


async def test_job_keeps_its_own_preload_and_cannot_switch_its_protection_off(
    protected: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUXFLOW_SIMGPU", "/dev/shm/simulated")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/simulated")
    protected.start(
        sys.executable,
        "-c",
        "import json, os; print(json.dumps(dict(os.environ)), flush=True)",
        env={
            "LD_PRELOAD": "/usr/lib/libm.so.6",
            "LD_LIBRARY_PATH": "/opt/of-the-job",
            "XCUDA_MODE": "observe",
            "XCUDA_JOB_DIR": "/tmp",
            "XCUDA_LOG": "/dev/null",
            "CUDA_MPS_PIPE_DIRECTORY": "/tmp",
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100",
            "CUDA_VISIBLE_DEVICES": "0,1",
            "MUXFLOW_SIMGPU": "/another",
        },
    )
    await protected.fact(RunExited)
    seen = json.loads(protected.output().splitlines()[-1])
    assert seen["LD_PRELOAD"] == f"{native.path('libxcuda.so')}:/usr/lib/libm.so.6"
    assert seen["LD_LIBRARY_PATH"] == "/opt/of-the-job:/opt/simulated"
    assert seen["MUXFLOW_SIMGPU"] == "/dev/shm/simulated"
    assert seen["CUDA_VISIBLE_DEVICES"] == GPU
    assert seen["XCUDA_LOG"] == "/dev/null"
    assert seen["XCUDA_JOB_DIR"] != "/tmp"
    assert not {"XCUDA_MODE", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"} & set(seen)


async def test_pages_say_what_the_attempt_may_use_and_go_when_it_has_ended(protected: Node, run: RunDirectory) -> None:
    slot = protected.start("sleep", "1000")
    await protected.fact(RunStarted)
    found = control(run, slot)
    assert (found.limits.gpu, found.limits.quota_bytes) == (GPU, slot.memory_quota_bytes)
    assert (found.order.gate.state, found.order.phase) == (GateState.OPEN, JobPhase.RUN)
    assert found.order.gate.budget_permille == 1000
    assert run.job(slot.key).job_page.exists()
    protected.runner.stop(slot.key, StopCause.DECISION)
    await protected.fact(RunExited)
    assert list(run.jobs()) == []


async def test_attempt_without_room_for_its_pages_is_told_as_not_started(
    protected: Node, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("muxflow_executor.protection.JobPage.create", full)
    exited = await protected.exit_of("true")
    assert exited.exit.error == "cannot start: [Errno 28] No space left on device"
    assert list(run.jobs()) == []


async def test_pages_that_could_only_be_made_in_part_are_not_left_behind(
    protected: Node, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("muxflow_executor.protection.JobControlWriter", full)
    await protected.exit_of("true")
    assert list(run.jobs()) == []


async def test_job_saves_through_a_trickle_and_then_drains(protected: Node, run: RunDirectory) -> None:
    code = """
def save(*_):
    print("saving:", gate(), flush=True)
    Path(os.environ["MUXFLOW_CHECKPOINT_MARK"]).touch()
def end(*_):
    print("ending:", gate(), flush=True)
    say(0, drained=1)
    while "STOP" in gate() and not gate().startswith("FROZEN"): time.sleep(0.005)
    print("drained:", gate(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGUSR2, save)
signal.signal(signal.SIGTERM, end)
say(3)
print("ready:", gate(), flush=True)
while True: signal.pause()
"""
    slot = protected.start(*on_gpu(code), checkpoint=CHECKPOINT)
    await until(lambda: "ready" in protected.output())
    protected.runner.stop(slot.key, StopCause.EVICTION, "online needs the GPU")
    await protected.fact(RunExited)
    assert protected.output().splitlines() == [
        "ready: OPEN RUN",
        "saving: TRICKLE CHECKPOINT",
        "ending: TRICKLE STOP",
        "drained: FROZEN STOP",
    ]
    assert await steps(protected, slot) == [Step.FREEZE, Step.CHECKPOINT, Step.TERMINATE, Step.DRAINED, Step.ENDED]
    assert {RunEvicted, RunCheckpointed, RunExited} <= {type(event) for event in protected.told}


async def test_hard_stop_lets_nothing_trickle_and_nothing_be_saved(protected: Node) -> None:
    code = """
signal.signal(signal.SIGUSR2, lambda *_: print("asked to save", flush=True))
signal.signal(signal.SIGTERM, lambda *_: (print("ending:", gate(), flush=True), sys.exit(0)))
print("ready", flush=True)
while True: signal.pause()
"""
    slot = protected.start(*on_gpu(code), checkpoint=CHECKPOINT)
    await until(lambda: "ready" in protected.output())
    protected.runner.stop(slot.key, StopCause.EVICTION, hard=True)
    await protected.fact(RunExited)
    assert protected.output().splitlines() == ["ready", "ending: FROZEN STOP_HARD"]


async def test_hard_stop_cuts_a_stop_short_that_is_under_way(protected: Node) -> None:
    code = """
signal.signal(signal.SIGUSR2, lambda *_: print("saving:", gate(), flush=True))
signal.signal(signal.SIGTERM, lambda *_: (print("ending:", gate(), flush=True), sys.exit(0)))
print("ready", flush=True)
while True: signal.pause()
"""
    slot = protected.start(*on_gpu(code), checkpoint=CHECKPOINT)
    await until(lambda: "ready" in protected.output())
    protected.runner.stop(slot.key, StopCause.DECISION, "moved")
    await until(lambda: "saving" in protected.output())
    assert not protected.runner.stop(slot.key, StopCause.EVICTION, hard=True)
    exited = await protected.fact(RunExited)
    assert protected.output().splitlines() == ["ready", "saving: TRICKLE CHECKPOINT", "ending: FROZEN STOP_HARD"]
    assert exited.exit.stopped_by is StopCause.DECISION


async def test_job_that_broke_a_rule_is_killed_without_a_signal_before_and_its_exit_tells_why(protected: Node) -> None:
    code = """
signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
print("ready", flush=True)
while True: signal.pause()
"""
    slot = protected.start(*on_gpu(code), checkpoint=CHECKPOINT)
    await until(lambda: "ready" in protected.output())
    protected.runner.stop(slot.key, StopCause.BREACH, "it uses 9.3 GiB", hard=True)
    status = (await protected.fact(RunExited)).exit
    assert (status.signal, status.stopped_by, status.stop_reason) == ("SIGKILL", StopCause.BREACH, "it uses 9.3 GiB")
    assert status.describe() == "killed by SIGKILL, stopped by breach: it uses 9.3 GiB"
    assert protected.output() == "ready\n"
    assert await steps(protected, slot) == [Step.FREEZE, Step.DISCONNECT, Step.KILL, Step.ENDED]


async def test_job_that_is_found_to_break_a_rule_while_it_is_stopped_has_failed_for_that(protected: Node) -> None:
    code = """
signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
print("ready", flush=True)
while True: signal.pause()
"""
    slot = protected.start(*on_gpu(code))
    await until(lambda: "ready" in protected.output())
    protected.runner.stop(slot.key, StopCause.EVICTION, "online needs the GPU")
    await until(lambda: "asked to end" in protected.output())
    for _ in range(2):  # the evictor gives such an order again while the attempt is there
        protected.runner.stop(slot.key, StopCause.BREACH, "it uses 9.3 GiB", hard=True)
    status = (await protected.fact(RunExited)).exit
    assert (status.signal, status.stopped_by, status.stop_reason) == ("SIGKILL", StopCause.BREACH, "it uses 9.3 GiB")
    assert [fact.cause for fact in protected.told if isinstance(fact, RunEvicted)] == [StopCause.EVICTION]


@given(raw=st.binary(min_size=sizeof(RawProcessSlot), max_size=sizeof(RawProcessSlot)), error=st.integers(1, 2**32 - 1))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exit_of_a_job_that_writes_anything_into_its_slot_can_be_told(leaving: Run, raw: bytes, error: int) -> None:
    assert leaving.job is not None
    slot = RawProcessSlot.from_buffer_copy(raw)
    slot.owner, slot.last_error = owner_of(os.getpid()), error
    with leaving.job.directory.job_page.open("r+b") as page:
        page.seek(RawJobPage.slots.offset)
        page.write(2 * bytes(slot))
    status = ExitStatus(code=1, gpu_error=leaving.job.gpu_error(), refused_bytes=leaving.job.refused_bytes())
    exited = RunExited(node="a", gpu=GPU, tenant="t", job="j", attempt=1, exit=status, ended_ns=1)
    assert status.gpu_error is not None
    assert decode(encode(exited), RunExited) == exited


async def test_memory_that_was_refused_is_told_with_the_exit(protected: Node) -> None:
    code = """
slot = RawProcessSlot(owner=owner_of(os.getpid()), refused_bytes=3 << 29)
with PAGE.open("r+b") as page:
    page.seek(RawJobPage.slots.offset)
    page.write(bytes(slot))
sys.exit(1)
"""
    status = (await protected.exit_of(*on_gpu(code))).exit
    assert status.describe() == "exit code 1, after it was refused 1.5 GiB of GPU memory beyond what it asked for"


async def test_first_sticky_cuda_error_of_any_process_is_told_with_the_exit(protected: Node) -> None:
    code = """
def fail(position, code, call, at_ns):
    slot = RawProcessSlot(owner=owner_of(os.getpid()) + position, last_error=code, last_error_call=call,
                          last_error_boottime_ns=at_ns)
    with PAGE.open("r+b") as page:
        page.seek(RawJobPage.slots.offset + position * len(bytes(slot)))
        page.write(bytes(slot))
now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
fail(0, 719, 0, now_ns)
fail(1, 700, 0, now_ns - 1_000_000_000)
sys.exit(3)
"""
    before_ns = time.time_ns()
    status = await protected.exit_of(*on_gpu(code))
    error = status.exit.gpu_error
    assert error is not None
    assert (error.code, error.name, error.call) == (700, "CUDA_ERROR_ILLEGAL_ADDRESS", "cuLaunchKernel")
    assert abs(error.time_ns - before_ns) < 10**10
    assert status.exit.describe() == "exit code 3, after cuLaunchKernel gave CUDA_ERROR_ILLEGAL_ADDRESS (700)"


async def test_stubborn_program_is_killed_by_its_shim_when_the_ladder_says_so(protected: Node) -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(1); print('ready', flush=True); time.sleep(1000)"
    slot = protected.start(*on_gpu(code), stop_grace_s=0.3)
    await until(lambda: "ready" in protected.output())
    protected.runner.stop(slot.key, StopCause.EVICTION)
    assert (await protected.fact(RunExited)).exit.signal == "SIGKILL"
    assert await steps(protected, slot) == [Step.FREEZE, Step.TERMINATE, Step.DISCONNECT, Step.KILL, Step.ENDED]


async def test_shim_kills_by_itself_when_the_executor_is_dead(
    tmp_path: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muxflow_executor.launch._LATE_S", 0.3)
    node = Node(tmp_path, run=run, ladder=LadderPolicy(disconnect_s=0.2))
    await node.runner.open()
    code = "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True)); print('ready', flush=True)\n"
    slot = node.start(*on_gpu(code + "while True: signal.pause()"), stop_grace_s=0.2)
    await until(lambda: "ready" in node.output())
    node.runner.stop(slot.key, StopCause.EVICTION)
    await until(lambda: "asked" in node.output())
    await node.runner.close()
    await until((node.directory() / "exit.json").exists)
    await node.restart()
    exited = await node.fact(RunExited)
    assert (exited.exit.signal, exited.exit.stopped_by) == ("SIGKILL", StopCause.EVICTION)
    await node.end()


async def test_restarted_executor_goes_on_with_a_stop_and_holds_the_same_gate(
    protected: Node, run: RunDirectory
) -> None:
    code = """
signal.signal(signal.SIGTERM, lambda *_: print("asked:", gate(), flush=True))
print("ready", flush=True)
while True: signal.pause()
"""
    slot = protected.start(*on_gpu(code), stop_grace_s=1.0)
    await until(lambda: "ready" in protected.output())
    inode = run.job(slot.key).control_page.stat().st_ino
    await protected.restart()
    assert run.job(slot.key).control_page.stat().st_ino == inode
    protected.runner.stop(slot.key, StopCause.EVICTION, hard=True)
    await until(lambda: "asked: FROZEN STOP_HARD" in protected.output())
    await protected.restart()
    exited = await protected.fact(RunExited)
    assert (exited.exit.signal, exited.exit.stopped_by) == ("SIGKILL", StopCause.EVICTION)


async def test_lost_job_control_is_made_anew_so_that_the_job_finds_it(protected: Node, run: RunDirectory) -> None:
    slot = protected.start("sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.02; done', stop_grace_s=0.5)
    await until(lambda: protected.output() == "ready\n")
    run.job(slot.key).control_page.unlink()
    protected.runner.stop(slot.key, StopCause.EVICTION, hard=True)
    await until(run.job(slot.key).control_page.exists)
    await until(lambda: order(run, slot).phase is JobPhase.STOP_HARD)
    await protected.fact(RunExited)


CHILD_THAT_DRAINS = """
import subprocess
if len(sys.argv) == 1:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", sys.orig_argv[2], "child"], process_group=0)
    while not Path("child-ready").exists(): time.sleep(0.01)
    sys.exit(3)
def drain(*_):
    seen = gate()
    time.sleep(0.3)
    say(0, drained=1)
    Path("child-drained").write_text(seen)
    os._exit(0)
signal.signal(signal.SIGTERM, drain)
say(5)
Path("child-ready").touch()
while True: signal.pause()
"""


async def test_what_a_program_leaves_on_the_gpu_is_drained_before_it_is_killed(protected: Node) -> None:
    slot = protected.start(*on_gpu(CHILD_THAT_DRAINS))
    exited = await protected.fact(RunExited)
    assert (exited.exit.code, exited.exit.stopped_by) == (3, None)
    drained = protected.directory() / "work" / "child-drained"
    assert drained.exists()
    assert slot.key in protected.runner.runs


@pytest.fixture
def leaving(run: RunDirectory) -> Iterator[Run]:
    """An attempt whose program has ended, and has left a process with work in flight."""
    attempt = Attempt(tenant="default", job="leaving", attempt=1)
    found = Run(attempt, GPU)
    job = found.job = Protection(run).protect(attempt, gpu=GPU, quota_bytes=1)
    found.started = Started(pid=1, start_ticks=0, boot_id="", pgid=1, time_ns=0, boottime_ns=0)
    found.shim_pid = os.getpid()
    with subprocess.Popen(["sleep", "1000"]) as left:
        slot = RawProcessSlot(owner=owner_of(left.pid), inflight=5)
        with job.directory.job_page.open("r+b") as page:
            page.seek(RawJobPage.slots.offset)
            page.write(bytes(slot))
        yield found
        left.kill()
    job.close()


def end(leaving: Run) -> None:
    """As the runner does when nothing is left."""
    leaving.over.set()
    assert leaving.job is not None
    leaving.job.remove()
    leaving.job = None


async def test_what_ends_by_itself_while_it_is_cleared_away_harms_nobody(leaving: Run, run: RunDirectory) -> None:
    clearing = asyncio.create_task(clear_away(leaving, LadderPolicy(hard_grace_s=60)))
    control_page = run.job(leaving.attempt).control_page
    await until(lambda: JobControl.read(control_page).order.phase is JobPhase.STOP_HARD)
    end(leaving)
    async with asyncio.timeout(10):
        await clearing
    assert list(run.jobs()) == []


async def test_what_has_ended_before_it_is_cleared_away_gets_no_pages_any_more(leaving: Run, run: RunDirectory) -> None:
    clearing = asyncio.create_task(clear_away(leaving, LadderPolicy(hard_grace_s=60)))
    await asyncio.sleep(0)  # it asks the kernel for processes, in a thread
    end(leaving)
    async with asyncio.timeout(10):
        await clearing
    assert list(run.jobs()) == []


async def test_what_a_program_leaves_off_the_gpu_is_killed_at_once(protected: Node, tmp_path: Path) -> None:
    stubborn = f'(trap "" TERM; echo $BASHPID > {tmp_path}/child; while :; do sleep 0.05; done) & '
    began = time.monotonic()
    exited = await protected.exit_of("bash", "-c", stubborn + f"while [ ! -s {tmp_path}/child ]; do :; done; exit 4")
    assert exited.exit.code == 4
    assert not alive(int((tmp_path / "child").read_text()))
    order = protected.attempt().intent.order
    assert order is not None
    assert time.monotonic() - began < order.drain_s


async def test_pages_of_attempts_that_nobody_knows_are_swept_away(protected: Node, run: RunDirectory) -> None:
    assert protected.protection is not None
    stranger = Attempt(tenant="default", job="of-a-lost-state-directory", attempt=1)
    protected.protection.protect(stranger, gpu=GPU, quota_bytes=1).close()
    slot = protected.start("sleep", "1000")
    await protected.fact(RunStarted)
    await protected.restart()
    assert [directory.name for directory in run.jobs()] == [run.job(slot.key).name]


async def test_executor_killed_before_it_dropped_the_pages_of_an_ended_attempt_does_so_later(
    protected: Node, run: RunDirectory
) -> None:
    slot = protected.start("sleep", "1000")
    started = await protected.fact(RunStarted)
    await protected.runner.close()
    os.kill(started.pid, signal.SIGKILL)
    await until((protected.directory() / "exit.json").exists)
    assert run.job(slot.key).path.exists()
    await protected.restart()
    await protected.fact(RunExited)
    assert list(run.jobs()) == []


async def test_attempt_that_ends_while_it_is_taken_over_leaves_no_pages(
    protected: Node, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    protected.start("sleep", "1000")
    started = await protected.fact(RunStarted)
    await protected.runner.close()
    os.kill(started.pid, signal.SIGKILL)
    await until((protected.directory() / "exit.json").exists)
    monkeypatch.setattr(Protection, "sweep", lambda *_: None)  # it lived when this looked
    await protected.restart()
    await protected.fact(RunExited)
    assert list(run.jobs()) == []


def test_second_executor_on_one_run_directory_is_refused(run: RunDirectory) -> None:
    first = Protection(run)
    first.open()
    try:
        with pytest.raises(OSError, match="in use by another executor"):
            Protection(run).open()
    finally:
        first.close()
