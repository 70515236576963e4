"""An inference-like online service under open-loop load: requests come when they come, whether or not it keeps up.

Each request is a few kernels. Its latency counts from when it was due, so that waiting in line is seen. At the end it
says how it went; with --log there is one JSON line per request: due_ns, done_ns (CLOCK_MONOTONIC), and the error that
cost it its answer, or null.

    eval "$(muxflow device env 0)"
    python3 examples/workloads/online_service.py --rate 50 --seconds 60 --log online.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cuda_driver import CudaError, Driver, Gpu

SECOND_NS = 1_000_000_000
SPIN_NS = 200_000
"""The last part of a wait for the next request is spent looking at the clock: a sleep wakes up late."""


def arrivals(rates_per_s: list[float], *, seconds: float, seed: int) -> Iterator[float]:
    """Give the time of each request, in seconds from the start: Poisson, with the rate of the second it falls into.

    The rates repeat when `seconds` is longer than their list.
    """
    chance = random.Random(seed)
    at_s = 0.0
    while at_s < seconds:
        rate = rates_per_s[int(at_s) % len(rates_per_s)]
        step_s = chance.expovariate(rate) if rate > 0 else float("inf")
        if at_s + step_s >= int(at_s) + 1:  # memoryless: begin anew with the next second's rate
            at_s = float(int(at_s) + 1)
            continue
        at_s += step_s
        yield at_s


def wait_until(due_ns: int) -> None:
    """Sleep, and be there in time."""
    left_ns = due_ns - time.monotonic_ns()
    if left_ns > SPIN_NS:
        time.sleep((left_ns - SPIN_NS) / SECOND_NS)
    while time.monotonic_ns() < due_ns:
        pass


class Service:
    """Serves one request after the other; opens the GPU again when it was taken from under it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._driver = Driver()
        self._gpu: Gpu | None = Gpu(self._driver)

    def serve(self) -> str | None:
        """Do one request's work; gives the error that it met."""
        try:
            if self._gpu is None:
                self._gpu = Gpu(self._driver)
            for _ in range(self._options.kernels):
                self._gpu.spin(self._options.kernel_us, blocks=self._options.blocks)
            self._gpu.synchronize()
        except CudaError as error:
            self._close()
            return str(error)
        return None

    def _close(self) -> None:
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            try:
                gpu.close()
            except CudaError as error:
                print(f"context lost: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the GPU."""
        self._close()


class Notes:
    """What became of the requests."""

    def __init__(self, log: TextIO | None) -> None:
        self._log = log
        self._latencies_ms: list[float] = []
        self._lost = 0

    def take(self, due_ns: int, done_ns: int, error: str | None) -> None:
        """Note one request."""
        if error is None:
            self._latencies_ms.append((done_ns - due_ns) / 1e6)
        else:
            self._lost += 1
        if self._log is not None:
            self._log.write(json.dumps({"due_ns": due_ns, "done_ns": done_ns, "error": error}) + "\n")

    def close(self) -> None:
        """Say how it went."""
        if self._log is not None:
            self._log.flush()
        ordered = sorted(self._latencies_ms)
        if ordered:
            p50, p99 = (ordered[round(share * (len(ordered) - 1))] for share in (0.5, 0.99))
            print(f"{len(ordered)} requests answered: p50 {p50:.1f} ms, p99 {p99:.1f} ms", flush=True)
        print(f"{self._lost} requests lost", flush=True)


def run(options: argparse.Namespace, notes: Notes) -> None:
    """Serve until the time is over or a signal comes."""
    service = Service(options)
    service.serve()  # the first request of a process pays for loading
    print(json.dumps({"ready_ns": time.monotonic_ns()}), flush=True)
    begin_ns = int(options.begin_ns) or time.monotonic_ns()
    for at_s in arrivals(options.rates_per_s, seconds=options.seconds, seed=options.seed):
        due_ns = begin_ns + int(at_s * SECOND_NS)
        wait_until(due_ns)
        error = service.serve()
        notes.take(due_ns, time.monotonic_ns(), error)
    service.close()


def read_rates(path: str) -> list[float]:
    """Read one rate per line, in requests per second; ``#`` begins a comment."""
    try:
        lines = (line.partition("#")[0].strip() for line in Path(path).read_text().splitlines())
        rates = [float(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not rates or any(rate < 0 for rate in rates):
        raise argparse.ArgumentTypeError(f"{path}: one rate >= 0 per line, in requests per second")
    return rates


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rates", type=lambda path: read_rates(Path(path)), dest="rates_per_s", help="file with one rate per second"
    )
    parser.add_argument("--rate", type=float, help="the same rate all the time, in requests per second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to serve")
    parser.add_argument("--begin-ns", type=int, default=0, help="CLOCK_MONOTONIC of the start; default: now")
    parser.add_argument("--seed", type=int, default=1, help="of the times of the requests")
    parser.add_argument("--kernels", type=int, default=4, help="per request")
    parser.add_argument("--kernel-us", type=int, default=500, help="duration of each, in microseconds")
    parser.add_argument("--blocks", type=int, default=64, help="thread blocks of each")
    parser.add_argument("--log", type=argparse.FileType("w"), help="file for one JSON line per request")
    options = parser.parse_args()
    if options.rates_per_s is None:
        options.rates_per_s = [options.rate if options.rate is not None else 20.0]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    notes = Notes(options.log)
    try:
        run(options, notes)
    finally:
        notes.close()


if __name__ == "__main__":
    main()
