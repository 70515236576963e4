"""The shim's way from the executor's intent to the program's exit."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final, NoReturn

from muxflow_executor.shim import descendants, guard, program
from muxflow_executor.shim.handover import receive
from muxflow_executor.shim.output import Output
from muxflow_executor.shim.records import asked_to_stop, boot_id, boottime_ns, claim, identity, read_json, write_json
from muxflow_executor.shim.signals import Signals

if TYPE_CHECKING:
    from typing import Any

_SECOND_NS: Final = 1_000_000_000
_KILL_AGAIN_NS: Final = 100_000_000
_DRAIN_LOOK_NS: Final = 20_000_000


def main() -> NoReturn:
    """Run one attempt and exit, without the time that an interpreter takes to tidy up."""
    try:
        run_attempt()
    except BaseException:  # noqa: BLE001 - the last words of a process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_attempt() -> None:
    """Run one attempt. Returns when nothing of it is left and its exit is on disk."""
    descendants.be_called("muxflow-waiting")
    handed = receive()
    if handed is None:
        return
    descendants.be_called("muxflow-shim")
    directory, environment = handed
    os.chdir(directory)
    complaints = os.open("shim.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(complaints, 2)
    order = read_json("intent.json")["order"] | {"shim_pid": os.getpid()}
    if not claim("."):
        return
    signals = Signals()
    lease = Lease(order["lease_path"])
    refusal = why_not_start(lease)
    if refusal is not None:
        finish(refusal, started_ns=0, ended_ns=time.time_ns())
        return

    guard_pid = guard.post(b"MUXFLOW_RUN_ID=" + environment.get(b"MUXFLOW_RUN_ID", b""), order["cgroup"])
    output = Output(order["log_bytes"])
    descendants.adopt_orphans()
    started_ns = time.time_ns()
    pid, error = program.start(order, environment, output)
    environment.clear()
    if error is not None:
        descendants.remove_cgroup(order["cgroup"])
        finish({"error": error}, started_ns=0, ended_ns=time.time_ns())
        return
    with contextlib.suppress(OSError):  # a full disk is no reason to end the program; exit.json has the time too
        clocks = {"time_ns": started_ns, "boottime_ns": boottime_ns()}
        write_json("started.json", identity(pid) | {"pgid": pid} | clocks)
    tell_executor()

    status, stopped_by, killed = watch(pid, order, lease, output, signals)
    ended_ns = time.time_ns()
    if not killed:
        let_drain(order, lease, output, signals, guard_pid=guard_pid)
    descendants.end_all(order["cgroup"])
    output.drain()
    ended = program.ended(status) | {"stopped_by": stopped_by or asked_to_stop()}
    oom_kills = descendants.oom_kills(order["cgroup"])
    if oom_kills is not None:
        ended["oom_killed"] = oom_kills > 0 and ended["signal"] == "SIGKILL" and not killed
    descendants.remove_cgroup(order["cgroup"])
    finish(ended, started_ns=started_ns, ended_ns=ended_ns)


class Lease:
    """The node's lease, which the executor extends in a file: boot id and deadline by CLOCK_BOOTTIME in ns."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._boot_id = boot_id()
        self._deadline_ns = 0

    def deadline_ns(self) -> int:
        """Read the deadline; the last one read stands while the file cannot be read."""
        with contextlib.suppress(OSError, ValueError), open(self._path, encoding="ascii") as file:
            boot, deadline = file.read().split()
            if boot == self._boot_id:
                self._deadline_ns = int(deadline)
        return self._deadline_ns


def why_not_start(lease: Lease) -> dict[str, Any] | None:
    """Say how the attempt ends if its program must not be started any more; None when it may."""
    cause = asked_to_stop()
    if cause is not None:
        return {"error": "not started: told to stop before", "stopped_by": cause}
    if boottime_ns() >= lease.deadline_ns():
        return {"error": "not started: the node's lease had expired", "stopped_by": "lease"}
    return None


def watch(
    pid: int, order: dict[str, Any], lease: Lease, output: Output, signals: Signals
) -> tuple[int, str | None, bool]:
    """Wait for the program's end; stop it when told, or when the lease has run out. A stop is never taken back.

    It is killed when the executor says so. `kill_grace_s` is for an executor that cannot: it is longer than all that
    the executor does between the two. Gives back the wait status, why it was stopped, and whether we killed it.
    """
    poll_ns = int(order["lease_poll_s"] * _SECOND_NS)
    lease_grace_ns = int(order["lease_grace_s"] * _SECOND_NS)
    grace_ns = int(order["kill_grace_s"] * _SECOND_NS)
    cause: str | None = None
    kill_ns: int | None = None
    killed = False
    look_ns = 0
    while True:
        status = signals.reap(pid)
        if status is not None:
            return status, cause, killed
        now_ns = boottime_ns()
        if cause is None and signals.told_to_stop:
            cause = asked_to_stop() or "shutdown"
            kill_ns = now_ns + (min(grace_ns, lease_grace_ns) if cause == "lease" else grace_ns)
            signal_group(pid)
        if signals.told_to_kill and not killed:
            kill_ns = now_ns
        if now_ns >= look_ns:
            deadline_ns = lease.deadline_ns()
            look_ns = now_ns + poll_ns
            if now_ns < deadline_ns:
                look_ns = min(look_ns, deadline_ns)
            else:
                if cause is None:
                    cause, kill_ns = "lease", now_ns + grace_ns
                    signal_group(pid)
                if kill_ns is not None and not killed:
                    kill_ns = min(kill_ns, deadline_ns + lease_grace_ns)
        if kill_ns is not None and now_ns >= kill_ns:
            killed, kill_ns = True, now_ns + _KILL_AGAIN_NS
            descendants.kill_all(order["cgroup"])
        wake_ns = look_ns if kill_ns is None else min(look_ns, kill_ns)
        signals.wait(output, max(0, wake_ns - now_ns))


def let_drain(order: dict[str, Any], lease: Lease, output: Output, signals: Signals, *, guard_pid: int) -> None:
    """Ask what the program has left behind to end. Killed at once, it could hurt others who use the same GPU.

    Returns when nothing of it is left, when the executor says that it may be killed, or when its time is over.
    """
    until_ns = boottime_ns() + int(order["drain_s"] * _SECOND_NS)
    lease_grace_ns = int(order["lease_grace_s"] * _SECOND_NS)
    asked: set[int] = set()
    while not signals.told_to_kill and boottime_ns() < min(until_ns, lease.deadline_ns() + lease_grace_ns):
        left = set(descendants.below(os.getpid())) - {guard_pid}
        if not left:
            return
        for pid in left - asked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        asked |= left
        signals.wait(output, _DRAIN_LOOK_NS)
        signals.reap(0)


def signal_group(pid: int) -> None:
    """SIGTERM to the program and what it started in its own process group."""
    with contextlib.suppress(OSError):  # a set-user-ID program may not be signalled by us
        os.killpg(pid, signal.SIGTERM)


def finish(ended: dict[str, Any], *, started_ns: int, ended_ns: int) -> None:
    """Put the exit on disk, trying until the disk takes it or the attempt's directory is gone."""
    record = {"code": None, "signal": None, "oom_killed": None, "error": None, "stopped_by": None}
    record |= ended | {"started_ns": started_ns, "ended_ns": ended_ns, "boot_id": boot_id()}
    while os.path.exists("intent.json"):
        try:
            write_json("exit.json", record)
            break
        except OSError as error:
            print(f"cannot write exit.json, trying again: {error}", file=sys.stderr, flush=True)  # noqa: T201
            time.sleep(1)
    tell_executor()


def tell_executor() -> None:
    """Close descriptor 1: there is something new to read."""
    os.dup2(0, 1)
