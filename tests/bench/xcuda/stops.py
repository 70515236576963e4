"""How soon offline work ends when it is to: by the gate, and by the beacon. Times are the simulated device's own."""

from __future__ import annotations

import bisect
import random
import time
from typing import Any

import msgspec

from muxflow_simgpu import KERNELS, Operation
from muxflow_simgpu.figures import percentile
from xcuda.node import BEACON_WINDOW_US, NO_WINDOW_US, WINDOW_US, Gpu, Node, finish, say, stopped_at_end

_MS = 1_000_000
_US = 1_000
_WRITTEN_WITHIN_NS = 200 * _US
"""A freeze of which is not known more exactly when it was written does not count."""
_MOST_TRIES = 4


class Case(msgspec.Struct, frozen=True):
    """A program that is stopped again and again."""

    arguments: tuple[str, ...]
    window_us: int
    longest_us: int
    """Of its kernels; subtracted where that is asked for."""
    run_ms: float = 20.0
    """At least, and at most twice that."""
    still_ms: float = 12.0
    rarer: int = 1
    """How many times fewer its stops are."""


CASES = {
    "0.2 ms": Case(("us=200",), WINDOW_US, 200),
    "0.2 ms, 4 streams": Case(("us=200", "streams=4"), WINDOW_US, 200, rarer=2),
    "mixed": Case(("us=5,20000",), WINDOW_US, 20_000, run_ms=50.0, still_ms=35.0),
    "mixed, many short": Case(("us=5,5,5,5,5,20000",), WINDOW_US, 20_000, run_ms=50.0, still_ms=35.0, rarer=4),
    "mixed, of one grid": Case(("us=5,20000", "alike"), WINDOW_US, 20_000, run_ms=50.0, still_ms=55.0, rarer=4),
    "unbounded": Case(("us=200",), NO_WINDOW_US, 200, run_ms=90.0, still_ms=100.0, rarer=4),
}

ASKED = ("0.2 ms", "mixed", "unbounded")


class Stop(msgspec.Struct, frozen=True):
    """One freeze."""

    frozen_ns: int
    open_ns: int
    """When the gate opened again."""


def stop_ns(stop: Stop, kernels: list[Operation]) -> int:
    """Find how long after the freeze the last kernel ended that was launched before the gate opened again."""
    ended = [each.ended_ns for each in kernels if each.enqueued_ns < stop.open_ns and each.ended_ns > stop.frozen_ns]
    return max(ended, default=stop.frozen_ns) - stop.frozen_ns


def _freeze_again_and_again(gpu: Gpu, node: Node, case: Case, count: int) -> list[Stop]:
    chance = random.Random(1)
    stops: list[Stop] = []
    for _ in range(_MOST_TRIES * count):
        time.sleep(case.run_ms * chance.uniform(1, 2) / 1e3)
        before_ns = time.monotonic_ns()
        node.freeze()
        after_ns = time.monotonic_ns()
        time.sleep(case.still_ms / 1e3)
        if after_ns - before_ns < _WRITTEN_WITHIN_NS:
            stops.append(Stop(before_ns, time.monotonic_ns()))
        node.open_gate(window_us=case.window_us)
        gpu.look()
        if len(stops) == count:
            return stops
    raise TimeoutError("the host is too busy to say when a freeze was written")


def stops_ms(gpu: Gpu, node: Node, case: Case, count: int) -> list[float]:
    """Stop a job so many times."""
    node.open_gate(window_us=case.window_us)
    with stopped_at_end(gpu.start("program_kernels", *case.arguments, extra=node.offline())) as process:
        gpu.works(process)
        stops = _freeze_again_and_again(gpu, node, case, count)
        kernels = [each for each in gpu.operations(process.pid) if each.kind in KERNELS]
    ends_ns = [each.ended_ns for each in kernels]
    found = []
    for stop in stops:
        first, last = (bisect.bisect(ends_ns, at_ns) for at_ns in (stop.frozen_ns, stop.open_ns + 500 * _MS))
        found.append(stop_ns(stop, kernels[first:last]) / _MS)
    return found


def by_gate(gpu: Gpu, node: Node, count: int, more: bool = True) -> dict[str, Any]:
    """Measure from the freeze, as written, to the end of the last offline kernel. `more`: of all cases."""
    cases = {name: case for name, case in CASES.items() if more or name in ASKED}
    p99_ms = {}
    for name, case in cases.items():
        found = stops_ms(gpu, node, case, -(-count // case.rarer))
        p99_ms[name] = round(percentile(found, 99), 3)
        say(f"stopped {len(found)} times, {name}: p50 {percentile(found, 50):.2f}, p99 {p99_ms[name]:.2f} ms")
    less_ms = {name: round(p99_ms[name] - case.longest_us / 1e3, 3) for name, case in cases.items()}
    return {
        "stops": count,
        "stop_ms_p99": p99_ms["0.2 ms"],
        "stop_ms_p99_mixed": less_ms["mixed"],
        "stop_ms_p99_unbounded": p99_ms["unbounded"],
        "stop_ms_p99_by_case": p99_ms,
        "stop_ms_p99_less_one_kernel_by_case": less_ms,
    }


_ONLINE_US, _PAUSE_US = 3000, 5000


def by_beacon(gpu: Gpu, node: Node, count: int) -> dict[str, Any]:
    """Measure from an online launch call to the last offline launch that is let through beside it."""
    node.open_gate(window_us=BEACON_WINDOW_US)
    with stopped_at_end(gpu.start("program_kernels", "us=20", extra=node.offline())) as offline:
        gpu.works(offline)
        online = gpu.start("bench_online", count, _ONLINE_US, _PAUSE_US, extra=node.online())
        served = [tuple(map(int, line.split())) for line in finish(online).splitlines()]
        launched = sorted(each.enqueued_ns for each in gpu.operations(offline.pid) if each.kind in KERNELS)
    late_us = []
    for called_ns, ended_ns in served:
        first, last = bisect.bisect(launched, called_ns), bisect.bisect(launched, ended_ns)
        late_us.append((launched[last - 1] - called_ns) / _US if last > first else 0.0)
    found = {
        "beacon_requests": len(served),
        "beacon_stop_us_p99": round(percentile(late_us, 99), 1),
        "beacon_stop_us_p50": round(percentile(late_us, 50), 1),
        "beacon_stop_us_first": round(late_us[0], 1),
    }
    say(f"the last offline launch after an online one: {found}")
    return found
