"""Measures what the preload library costs and holds; prints one JSON object. Simulated: bounds for regressions.

What a launch costs is measured on a driver that does nothing, with and without the library in turn: instructions by
callgrind, of the program's own thread; times are the shortest of many short rounds. What is in flight, how long the
device works and when it stops comes from the log of a simulated A100 under MPS.

- ``launch_instructions_added``: per cuLaunchKernel, everything learned, gate open, window in force, with what opens and
  closes groups of launches, of kernels that take nothing (and count for 1 µs); ``…_by_call``; ``…_by_us``: of kernels
  that take longer, whose groups are smaller.
- ``driver_calls_per_launch_added``: calls to the driver beyond the launch, kernels of 5 µs; ``…_by_us``.
- ``launch_ns_added``, ``launch_ns_added_2threads``: time per launch, kernels of 5 µs; two threads at once, each with a
  stream.
- ``alloc_free_ns_added``: time per allocation that is freed again, beside one that lives, with a quota;
  ``…_5000_live``, ``…_100000_live``; ``…_any_by_live``: of a free of any of them, and an allocation;
  ``alloc_free_instructions_added_by_live``: the same in instructions. ``alloc_growing_ns_added``: per allocation of
  512 bytes, up to 100,000 that live: each enters the job page, which pairs do not.
- ``stop_ms_p99``: freeze written → the last offline kernel ends; 0.2 ms kernels, launched without a pause.
  ``…_mixed``: 5 µs and 20 ms kernels, less the longest one; ``…_unbounded``: as the first, with the largest window that
  there is, as good as none. ``…_by_case``; ``…_less_one_kernel_by_case``: less the longest kernel.
- ``window_throughput_ratio``: work done with the window in force / without the library; the worse of 0.2 ms and 20 µs
  kernels, each the median of rounds in turn; ``…_by_case``: of others, too.
- ``budget_error_points``: the farthest that the device's busy time was from the budget in any second, 0.4 s after the
  first kernel; 1,000 ‰ are 100 points; ``…_by_case`` with its sign.
- ``beacon_instructions``: added to an online launch. ``beacon_stop_us_p99``: online launch called → the last offline
  launch that is let through beside it; 0 where there is none. ``…_first``: of the first launch of a process.
- ``startup_ms_added``: to the start of a program without CUDA; the worse of /bin/true and Python.
- ``window_us``: the window in force. ``host_noise``: by how much 1 ms sleeps were too long, all through the run.
  ``ahead_of_others``: whether all but the instructions was measured at a real-time priority (see `xcuda.host`).
- ``targets``: the bounds, and whether they are reached.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from typing import Any

from xcuda import device_time, host, launches, memory, startup, stops
from xcuda.node import BEACON_WINDOW_US, WINDOW_US, build, gpu, node, say
from xcuda.targets import targets


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything."""
    found: dict[str, Any] = {
        "device": "simulated",
        "kind": options.kind,
        "window_us": WINDOW_US,
        "beacon_window_us": BEACON_WINDOW_US,
    }
    oversleeps: list[float] = []

    def take(figures: dict[str, Any]) -> None:
        found.update(figures)
        oversleeps.extend(host.oversleeps_us(100))

    with node() as kept:
        take(launches.instructions(kept, options.more))
        take(launches.calls(kept))
    with node(quota_bytes=memory.QUOTA_BYTES) as kept:
        take(memory.instructions(kept))
    oversleeps.clear()
    stolen_ms = host.stolen_ms()
    with host.ahead_of_others() as found["ahead_of_others"]:
        with node() as kept:
            take(launches.times(kept, options.repeat))
            take(startup.times(kept, options.starts))
        with node(quota_bytes=memory.QUOTA_BYTES) as kept:
            take(memory.times(kept, -(-options.repeat // 4)))
        with gpu(options.kind) as simulated, node() as kept:
            take(stops.by_gate(simulated, kept, options.stops, options.more))
            take(stops.by_beacon(simulated, kept, options.stops))
            take(device_time.ratios(simulated, kept, options.rounds, options.seconds, options.more))
            take(device_time.budget_errors(simulated, kept, options.budget_seconds, options.more))
    found["host_noise"] = host.noise(oversleeps, stolen_ms)
    return found


def main(words: list[str] | None = None) -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="A100", help="kind of the simulated GPU")
    parser.add_argument("--repeat", type=int, default=12, help="processes of which the shortest round counts")
    parser.add_argument("--starts", type=int, default=60, help="starts of a program with the library, and without")
    parser.add_argument("--stops", type=int, default=120, help="stops of each case, and requests beside the beacon")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which throughputs are compared")
    parser.add_argument("--seconds", type=float, default=0.8, help="length of each of their runs")
    parser.add_argument("--budget-seconds", type=float, default=1.8, help="length of a run under a budget, above 1.5")
    parser.add_argument("--fewer", dest="more", action="store_false", help="one case of each figure")
    options = parser.parse_args(words)
    if shutil.which("valgrind") is None:
        sys.exit("error: instructions are counted by valgrind, which is not on the PATH")
    build()
    begin_s = time.monotonic()
    found = measure(options)
    found["targets"] = targets(found)
    missed = [name for name, target in found["targets"].items() if not target["reached"]]
    say(f"{time.monotonic() - begin_s:.0f} s; targets missed: {', '.join(missed) or 'none'}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
