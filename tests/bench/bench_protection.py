"""Measures how well a device is protected; prints one JSON object. Simulated GPUs: regression bounds, not claims.

The whole of MuxFlow runs in every phase; online load is open-loop and bursty, with the same times in every phase of a
round. A round is: the online service alone, beside a protected offline job, and alone again (the noise floor); then, on
another machine, alone and beside the same job unprotected (an MPS client that may use the whole device, without xCUDA
and unknown to the executor).

- ``online_p99_ratio``: p99 of the online latency protected / alone; median over rounds, ``…_low``/``…_high`` its 95%
  interval. ``alone_p99_ratio``: alone / alone. ``online_p99_ratio_unprotected``: unprotected / alone.
- ``gpu_p99_ratio``, ``gpu_p99_ratio_unprotected``: the same with the host taken out. Each request takes as long as its
  kernels took on the device, and waits for the one before it. Beside other load on the machine this is what holds.
- ``offline_share``: what the protected job got done / what it would have, running alone in exactly the online side's
  idle device time. ``offline_share_unprotected``: the same without protection.
- ``burst_to_stop_ms_p99``: first online launch of a burst → end of the last offline kernel before it stops; null where
  bursts only slow it. ``bursts`` and ``bursts_stopped`` say how many there were.
- ``recover_ms_p99``: last online kernel of a burst → offline work back at 90% of its rate before.
- ``freeze_ms_p99``: the state machine decides to freeze → the last offline kernel ends; in hard Overlimit (memory
  exhausted), with the job at full speed. ``evict_hard_total_ms_p99``: that decision → the offline process is gone.
- ``evict_alert_ms_p99``, ``evict_total_ms_p99``: that decision → a subscriber has the alert; → the offline process is
  gone. Measured with ``evict_after_s = 0``, so that the decision to freeze is the one to evict, on a job that saves its
  state first: a batch of 20 kernels of 0.5 ms at the trickle of 50 ‰, on 30% of the SMs.
- ``monitor_cpu_pct``, ``monitor_rss_mb``: the monitor with 8 idle GPUs at 10 Hz; per cent of one core, and its memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from muxflow.contracts import DeviceCondition, JobState
from muxflow_simgpu import Operation, SimulatedMachine, figures
from muxflow_simgpu.figures import percentile
from protected_machine import ProtectedMachine
from workloads import WORKLOADS, OnlineService, Request, lost, until

SECOND_NS = 1_000_000_000
BURSTY = (5.0, 5.0, 120.0, 120.0, 5.0, 5.0, 5.0, 5.0, 150.0, 5.0)
"""Requests per second, second by second: a low load, and bursts that use a quarter to a third of the device."""
REQUEST = {"kernels": 4, "kernel_us": 500, "blocks": 432}
JOB = {"kernels": 20, "kernel_us": 500, "blocks": 4096, "save_every": 0}
FOREVER = 10**7


class Log:
    """Keeps what the device's own log would forget."""

    def __init__(self, machine: SimulatedMachine, index: int = 0) -> None:
        self._machine = machine
        self._index = index
        self._operations: list[Operation] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(1.0)
            after = self._operations[-1].number if self._operations else 0
            self._operations.extend(self._machine.operations(self._index, after=after))

    def close(self) -> list[Operation]:
        """Give everything that has ended by now."""
        self._ended.set()
        self._thread.join()
        return self._operations


@contextmanager
def machine(*kinds: str, **settings: float) -> Iterator[ProtectedMachine]:
    """Run MuxFlow on simulated GPUs for a while."""
    root = Path(tempfile.mkdtemp(prefix="muxflow-bench-"))
    node = ProtectedMachine(root / "state")
    try:
        node.simulate(*kinds, policy=None, **settings)
        node.environment()
        yield node
    finally:
        node.stop()
        shutil.rmtree(root, ignore_errors=True)


class Phase(msgspec.Struct, frozen=True):
    """What one phase gave."""

    requests: list[Request]
    operations: list[Operation]
    online: int
    """Process id of the online service."""
    offline: set[int]
    begin_ns: int
    end_ns: int

    @property
    def p99_ms(self) -> float:
        return percentile((request.latency_ms for request in self.requests), 99)

    @property
    def gpu_p99_ms(self) -> float:
        """The p99 of a host that is always in time: first come, first served, by what kernels took on the device."""
        served = [each for each in figures.kernels(self.operations, {self.online}) if each.enqueued_ns >= self.begin_ns]
        size = int(REQUEST["kernels"])
        free_ns = 0
        latencies_ms = []
        for number, request in enumerate(self.requests):
            taken = served[size * number : size * (number + 1)]
            free_ns = max(free_ns, request.due_ns) + sum(each.ended_ns - (each.started_ns or 0) for each in taken)
            latencies_ms.append((free_ns - request.due_ns) / figures.MILLISECOND_NS)
        return percentile(latencies_ms, 99)

    @property
    def share(self) -> float:
        return figures.offline_share(
            self.operations,
            online={self.online},
            offline=self.offline,
            start_ns=self.begin_ns,
            end_ns=self.end_ns,
        )

    def bursts(self) -> list[figures.Burst]:
        return figures.bursts(self.operations, {self.online}, self.end_ns)


def observe(node: ProtectedMachine, seconds: float, seed: int, offline: Callable[[], set[int]] = set) -> Phase:
    """Serve the load once. `offline` tells, at the end, which processes were offline ones."""
    log = Log(node.gpus)
    service: OnlineService = node.online(rates_per_s=BURSTY, seconds=seconds, seed=seed, **REQUEST)
    requests = service.finish()
    end_ns = time.monotonic_ns()
    pids = offline()
    return Phase(requests, log.close(), service.pid, pids, service.begin_ns, end_ns)


def protected(node: ProtectedMachine, name: str, seconds: float, seed: int) -> Phase:
    node.submit(name, batches=FOREVER, **JOB)
    node.running_pid(name)

    def pids() -> set[int]:
        started = node.portal.events("runs.started")
        return {each.event.pid for each in started if each.names["job"] == name}

    phase = observe(node, seconds, seed, pids)
    node.portal.cancel(name)
    node.wait_job(name, lambda job: job.state is JobState.CANCELLED, 30, "is cancelled")
    node.wait_state(DeviceCondition.HEALTHY, 60)
    return phase


def unprotected(node: ProtectedMachine, seconds: float, seed: int) -> Phase:
    command = [sys.executable, str(WORKLOADS / "offline_job.py"), "--batches", str(FOREVER)]
    command += [word for key, value in JOB.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    env = {**os.environ, **node.environment(beacon=False)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            phase = observe(node, seconds, seed, lambda: {process.pid})
        finally:
            process.terminate()
    until(lambda: not node.gpus.clients(0), 30, "the device is free")
    node.wait_state(DeviceCondition.HEALTHY, 120)
    return phase


def rounds(kind: str, count: int, seconds: float) -> dict[str, Any]:
    """Measure latency and throughput."""
    ratios, noise, bare_ratios = [], [], []
    gpu_ratios, bare_gpu_ratios = [], []
    shares, bare_shares, stops, recoveries = [], [], [], []
    bursts = requests = missed = missed_bare = 0
    with machine(kind) as node:
        for number in range(count):
            alone = observe(node, seconds, seed=number)
            beside = protected(node, f"job-{number}", seconds, seed=number)
            again = observe(node, seconds, seed=number)
            ratios.append(beside.p99_ms / alone.p99_ms)
            noise.append(again.p99_ms / alone.p99_ms)
            gpu_ratios.append(beside.gpu_p99_ms / alone.gpu_p99_ms)
            shares.append(beside.share)
            found = beside.bursts()
            bursts += len(found)
            stops += [figures.stop_ms(each, beside.operations, beside.offline) for each in found]
            recoveries += [figures.recover_ms(each, beside.operations, beside.offline) for each in found]
            requests += len(beside.requests)
            missed += len(lost(beside.requests))
            say(f"{number + 1}/{count}: p99 alone {alone.p99_ms:.2f}, protected {beside.p99_ms:.2f}, alone again")
            say(f"    {again.p99_ms:.2f} ms; by the GPU alone {gpu_ratios[-1]:.3f}; offline share {beside.share:.2f}")
    with machine(kind) as node:  # another one: here the offline job counts as an online one, also in forecasts
        for number in range(count):
            alone = observe(node, seconds, seed=number)
            bare = unprotected(node, seconds, seed=number)
            bare_ratios.append(bare.p99_ms / alone.p99_ms)
            bare_gpu_ratios.append(bare.gpu_p99_ms / alone.gpu_p99_ms)
            bare_shares.append(bare.share)
            missed_bare += len(lost(bare.requests))
            say(f"{number + 1}/{count}: p99 alone {alone.p99_ms:.2f}, unprotected {bare.p99_ms:.2f} ms")
    online, floor = figures.median_interval(ratios), figures.median_interval(noise)
    gpu, share = figures.median_interval(gpu_ratios), figures.median_interval(shares)
    return {
        "online_p99_ratio": round(online.median, 3),
        "online_p99_ratio_low": round(online.low, 3),
        "online_p99_ratio_high": round(online.high, 3),
        "alone_p99_ratio": round(floor.median, 3),
        "alone_p99_ratio_low": round(floor.low, 3),
        "alone_p99_ratio_high": round(floor.high, 3),
        "online_p99_ratio_unprotected": round(statistics.median(bare_ratios), 3),
        "gpu_p99_ratio": round(gpu.median, 3),
        "gpu_p99_ratio_low": round(gpu.low, 3),
        "gpu_p99_ratio_high": round(gpu.high, 3),
        "gpu_p99_ratio_unprotected": round(statistics.median(bare_gpu_ratios), 3),
        "offline_share": round(share.median, 3),
        "offline_share_low": round(share.low, 3),
        "offline_share_high": round(share.high, 3),
        "offline_share_unprotected": round(statistics.median(bare_shares), 3),
        "online_requests": requests,
        "online_requests_lost": missed,
        "online_requests_lost_unprotected": missed_bare,
        "bursts": bursts,
        "bursts_stopped": sum(each is not None for each in stops),
        "burst_to_stop_ms_p99": _p99(stops),
        "bursts_recovered": sum(each is not None for each in recoveries),
        "recover_ms_p99": _p99(recoveries),
    }


def say(line: str) -> None:
    """Tell how far it is, beside the result."""
    print(line, file=sys.stderr, flush=True)


QUICK = {
    "monitor__policy__overlimit_after_s": 0.2,
    "monitor__policy__settle_s": 0.2,
    "monitor__policy__readmit_s": 0.3,
    "monitor__policy__readmit_longest_s": 0.3,
    "scheduler__sm_share__lowest_pct": 30,
}
"""What only makes one freeze after the other wait is short."""


def uses_gpu(node: ProtectedMachine, pid: int, share: float) -> None:
    """Wait until a process uses more than this share of the GPU's time."""
    until(lambda: node.busy_share({pid}, 0.2) > share, 20, "it uses the GPU")


def overload(node: ProtectedMachine, pid: int) -> OnlineService:
    """Have the online side need the whole device, once the job uses it."""
    uses_gpu(node, pid, 0.1)
    return node.online(rates_per_s=(100.0,), seconds=2.0, kernels=4, kernel_us=3000, blocks=4096)


def decided_ns(node: ProtectedMachine, count: int) -> int:
    """Wait for the device's next Overlimit; gives when it was decided (UTC)."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [each.since_ns for each in node.story() if each.state is DeviceCondition.OVERLIMIT]
        return len(found) > count

    until(look, 30, "Overlimit")
    return found[-1]


HOARD = """
import ctypes, sys
from cuda_driver import Driver, Gpu
driver = Driver()
gpu = Gpu(driver)
free, total = ctypes.c_size_t(), ctypes.c_size_t()
driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
gpu.allocate(free.value - (64 << 20))
print("full", flush=True)
sys.stdin.read()
gpu.close()
"""
"""An online program that takes nearly all memory that is left, until its standard input ends."""


def freezes(kind: str, count: int) -> dict[str, Any]:
    """Measure freezes of a job at full speed: the online side takes the last memory, which is hard Overlimit."""
    frozen, gone = [], []
    with machine(kind, **QUICK) as node, node.portal.listen("alerts.eviction") as received:
        node.submit("frozen", batches=FOREVER, **JOB)
        clocks_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - time.monotonic_ns()
        env = {**os.environ, **node.environment(), "PYTHONPATH": str(WORKLOADS)}
        for number in range(count):
            pid = node.running_pid("frozen")
            uses_gpu(node, pid, 0.6)
            log = Log(node.gpus)
            with subprocess.Popen(
                [sys.executable, "-c", HOARD], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as hoarder:
                at_ns = decided_ns(node, number) - clocks_ns
                until(lambda: len(received) >= 2, 30, "both alerts")
            (_, first), (_, last) = received
            received.clear()
            frozen.append((figures.stopped_ns(log.close(), {pid}, after_ns=at_ns) - at_ns) / figures.MILLISECOND_NS)
            gone.append(last.total_ms + (first.decided_ns - clocks_ns - at_ns) / figures.MILLISECOND_NS)
            assert hoarder.returncode == 0
            say(f"{number + 1}/{count}: frozen after {frozen[-1]:.2f} ms, gone after {gone[-1]:.1f} ms")
            node.wait_state(DeviceCondition.HEALTHY, 30)
    return {"freezes": count, "freeze_ms_p99": _p99(frozen), "evict_hard_total_ms_p99": _p99(gone)}


def evictions(kind: str, count: int) -> dict[str, Any]:
    """Measure evictions, one after the other, of a job that saves its state."""
    alerts, totals = [], []
    with (
        machine(kind, evictor__policy__evict_after_s=0.0, **QUICK) as node,
        node.portal.listen("alerts.eviction") as received,
    ):
        node.submit("victim", batches=FOREVER, **JOB)
        for number in range(count):
            service = overload(node, node.running_pid("victim"))
            at_ns = decided_ns(node, number)
            until(lambda: len(received) >= 2, 30, "both alerts")
            service.finish()
            (first_ns, first), (_, last) = received
            received.clear()
            alerts.append((first_ns - at_ns) / figures.MILLISECOND_NS)
            totals.append(last.total_ms + (first.decided_ns - at_ns) / figures.MILLISECOND_NS)
            say(f"{number + 1}/{count}: alert after {alerts[-1]:.1f} ms, gone after {totals[-1]:.1f} ms")
            node.wait_state(DeviceCondition.HEALTHY, 30)
    return {"evictions": count, "evict_alert_ms_p99": _p99(alerts), "evict_total_ms_p99": _p99(totals)}


def monitor(kind: str, seconds: float) -> dict[str, Any]:
    """Measure what the monitor costs."""
    with machine(*[kind] * 8) as node:
        pid = node.pid("monitor")
        begin_s, begin_ticks = time.monotonic(), _cpu_ticks(pid)
        time.sleep(seconds)  # what is measured is the time that passes
        used_s = (_cpu_ticks(pid) - begin_ticks) / os.sysconf("SC_CLK_TCK")
        share = used_s / (time.monotonic() - begin_s)
        rss_kib = int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    return {"monitor_cpu_pct": round(100 * share, 2), "monitor_rss_mb": round(rss_kib * 1024 / 1e6, 1)}


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _p99(values: list[float | None] | list[float]) -> float | None:
    known = [each for each in values if each is not None]
    return round(percentile(known, 99), 2) if known else None


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="A100", help="kind of the simulated GPU")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of five phases")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a phase")
    parser.add_argument("--evictions", type=int, default=20, help="evictions, and freezes without one")
    parser.add_argument("--monitor-seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(
        json.dumps(
            {
                "simulated": True,
                "kind": options.kind,
                "rounds": options.rounds,
                "phase_s": options.seconds,
                **rounds(options.kind, options.rounds, options.seconds),
                **freezes(options.kind, options.evictions),
                **evictions(options.kind, options.evictions),
                **monitor(options.kind, options.monitor_seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
