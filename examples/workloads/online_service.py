r"""An inference-like online service under open-loop load: requests come when they come, whether or not it keeps up.

Each request is a few kernels. Its latency counts from when it was due, so that waiting in line is seen. All that it
prints is JSON, one object per line: at first `ready_ns`, with --progress each second how that went, at the end, which
may be a SIGTERM or Ctrl-C, how all of it went. With --log there is one line per request: due_ns, done_ns
(CLOCK_MONOTONIC), and the error that cost it its answer, or null.

    eval "$(muxflow device env 0)"
    python3 examples/workloads/online_service.py --rate 50 --seconds 60 --progress --log online.jsonl

A day in one minute, with the rates that rates.py made, twice as many requests and a larger model:

    python3 examples/workloads/online_service.py --rates examples/workloads/rates-day.txt --time-scale 24 \
        --rate-scale 2 --kernels 8 --blocks 128 --memory-mib 4096
"""

from __future__ import annotations

import argparse
import array
import itertools
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cuda_driver import CudaError, Driver, Gpu

SECOND_NS = 1_000_000_000
SPIN_NS = 200_000
"""The last part of a wait for the next request is spent looking at the clock: a sleep wakes up late."""
STOPPING = (signal.SIGTERM, signal.SIGINT)


def arrivals(rates_per_s: list[float], *, seconds: float, seed: int, time_scale: float = 1.0) -> Iterator[float]:
    """Give the time of each request, in seconds from the start: Poisson, with the rate of the moment.

    Each rate holds for 1/`time_scale` seconds. They repeat when `seconds` is longer than their list.
    """
    chance = random.Random(seed)
    for number in itertools.count():
        begin_s, end_s = number / time_scale, (number + 1) / time_scale
        if begin_s >= seconds:
            return
        rate = rates_per_s[number % len(rates_per_s)]
        at_s = begin_s + chance.expovariate(rate) if rate > 0 else end_s
        while at_s < min(end_s, seconds):
            yield at_s
            at_s += chance.expovariate(rate)  # memoryless: the next rate begins anew


class Service:
    """Serves one request after the other; opens the GPU again when it was taken from under it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._driver = Driver()
        self._gpu: Gpu | None = self._open()

    def serve(self) -> str | None:
        """Do one request's work; gives the error that it met."""
        try:
            if self._gpu is None:
                self._gpu = self._open()
            for _ in range(self._options.kernels):
                self._gpu.spin(self._options.kernel_us, blocks=self._options.blocks)
            self._gpu.synchronize()
        except CudaError as error:
            self.close()
            return str(error)
        return None

    def _open(self) -> Gpu:
        gpu = Gpu(self._driver)
        if self._options.memory_mib:
            gpu.allocate(self._options.memory_mib << 20)
        return gpu

    def close(self) -> None:
        """Leave the GPU."""
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            try:
                gpu.close()
            except CudaError as error:
                print(f"context lost: {error}", file=sys.stderr, flush=True)


class Tally:
    """Latencies of requests that were answered, and how many were not."""

    def __init__(self) -> None:
        self._latencies_ms = array.array("d")
        self._lost = 0

    def take(self, latency_ms: float | None) -> None:
        """Count one request; None: it was lost."""
        if latency_ms is None:
            self._lost += 1
        else:
            self._latencies_ms.append(latency_ms)

    def told(self) -> dict[str, Any]:
        """Sum it up. Without an answer there is no latency."""
        ordered = sorted(self._latencies_ms)
        return {
            "requests": len(ordered) + self._lost,
            "p50_ms": percentile(ordered, 0.5),
            "p99_ms": percentile(ordered, 0.99),
            "lost": self._lost,
        }


def percentile(ordered: list[float], share: float) -> float | None:
    """Take the nearest-rank percentile: a value that was measured."""
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3) if ordered else None


class Notes:
    """What became of the requests, told at the end, and each second if `progress` is wanted."""

    def __init__(self, log: TextIO | None, begin_ns: int, *, progress: bool) -> None:
        self._log = log
        self._begin_ns = begin_ns
        self._all, self._second = Tally(), Tally()
        self.next_ns: float = begin_ns + SECOND_NS if progress else math.inf
        """When `look` has something to tell."""

    def take(self, due_ns: int, done_ns: int, error: str | None) -> None:
        """Note one request."""
        for tally in (self._all, self._second):
            tally.take((done_ns - due_ns) / 1e6 if error is None else None)
        if self._log is not None:
            self._log.write(json.dumps({"due_ns": due_ns, "done_ns": done_ns, "error": error}) + "\n")

    def look(self, now_ns: int) -> None:
        """Tell how the last second went, if it is over. A service that was held up tells of all that time at once."""
        if now_ns < self.next_ns:
            return
        passed_s = (now_ns - self._begin_ns) // SECOND_NS
        say({"second": passed_s, **self._second.told()})
        self._second = Tally()
        self.next_ns = self._begin_ns + (passed_s + 1) * SECOND_NS

    def close(self) -> None:
        """Tell how all of it went."""
        if self._log is not None:
            self._log.close()
        say(self._all.told())


def say(what: dict[str, Any]) -> None:
    """Print one line."""
    print(json.dumps(what), flush=True)


def wait(due_ns: int, notes: Notes) -> bool:
    """Be there in time. False: a signal has told to stop.

    Signals that stop are blocked: one that comes while a request is served is seen when it has been. So nothing is in
    flight on the GPU when the process exits, which under MPS would hurt everybody else there.
    """
    while True:
        notes.look(time.monotonic_ns())
        until_ns = min(due_ns, notes.next_ns)
        left_s = max(0.0, (until_ns - SPIN_NS - time.monotonic_ns()) / SECOND_NS)
        if signal.sigtimedwait(STOPPING, left_s) is not None:
            return False
        if until_ns == due_ns:
            break
    while time.monotonic_ns() < due_ns:
        pass
    return True


def run(service: Service, options: argparse.Namespace) -> None:
    """Serve until the time is over or a signal comes."""
    service.serve()  # the first request of a process pays for loading
    ready_ns = time.monotonic_ns()
    say({"ready_ns": ready_ns})
    begin_ns = options.begin_ns or ready_ns
    notes = Notes(options.log, begin_ns, progress=options.progress)
    rates_per_s = [rate * options.rate_scale for rate in options.rates_per_s or [options.rate]]
    for at_s in arrivals(rates_per_s, seconds=options.seconds, seed=options.seed, time_scale=options.time_scale):
        due_ns = begin_ns + int(at_s * SECOND_NS)
        if not wait(due_ns, notes):
            break
        error = service.serve()
        notes.take(due_ns, time.monotonic_ns(), error)
    service.close()
    notes.close()


def read_rates(path: str) -> list[float]:
    """Read one rate per line, in requests per second; ``#`` begins a comment."""
    try:
        lines = (line.partition("#")[0].strip() for line in Path(path).read_text().splitlines())
        rates = [float(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not rates or any(not 0 <= rate < math.inf for rate in rates):
        raise argparse.ArgumentTypeError(f"{path}: one rate >= 0 per line, in requests per second")
    return rates


def scale(text: str) -> float:
    """Read a factor above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: not above 0")
    return value


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    load = parser.add_argument_group("load")
    rates = load.add_mutually_exclusive_group()
    rates.add_argument("--rate", type=float, default=20.0, help="requests per second, the same all the time")
    rates.add_argument("--rates", type=read_rates, dest="rates_per_s", help="file with one rate per second")
    load.add_argument("--rate-scale", type=scale, default=1.0, help="times as many requests")
    load.add_argument("--time-scale", type=scale, default=1.0, help="pass through the rates so many times as fast")
    load.add_argument("--seconds", type=float, default=60.0, help="how long to serve")
    load.add_argument("--begin-ns", type=int, default=0, help="CLOCK_MONOTONIC of the start; default: now")
    load.add_argument("--seed", type=int, default=1, help="of the times of the requests")
    footprint = parser.add_argument_group("footprint")
    footprint.add_argument("--kernels", type=int, default=4, help="per request")
    footprint.add_argument("--kernel-us", type=int, default=500, help="duration of each, in microseconds")
    footprint.add_argument("--blocks", type=int, default=64, help="thread blocks of each, 1024 threads a block")
    footprint.add_argument("--memory-mib", type=int, default=0, help="device memory to hold, beside the context's own")
    words = parser.add_argument_group("words")
    words.add_argument("--progress", action="store_true", help="print each second how it went")
    words.add_argument("--log", type=argparse.FileType("w"), help="file for one JSON line per request")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # before the driver starts threads, which inherit it
    try:
        service = Service(options)
    except (CudaError, OSError) as error:
        sys.exit(f'{error}; with `muxflow up` a GPU to serve on is named by: eval "$(muxflow device env 0)"')
    run(service, options)


if __name__ == "__main__":
    main()
