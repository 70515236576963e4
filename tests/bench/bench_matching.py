"""Measures the matching from 1,000 to 100,000 jobs and as many GPUs; prints one JSON object.

500 classes of GPUs and 1,000 of jobs, with structured speeds (tests/support/structured_fleet.py). Each size is measured
in a process of its own, so that ``peak_mb`` is its own. Times are CPU times of the one thread, the shortest of several:
other work on the machine counts little.

- ``cold_s``: the whole solve, from jobs and GPUs to who gets which, proofs included.
- ``warm_s``: the same a minute later, with the prices of the solve before; ``cold_again_s`` is its twin without.
- ``flow_cold_s`` / ``flow_warm_s``: of it the flow between classes, proof included; ``certificate_s``: the proof alone.
- ``gap``: (cost − bound) / bound, by the certificate.
- ``greedy``, ``random``, ``memory``: normalized throughput relative to the optimum, of each job in queue order taking
  the fastest GPU left (``greedy_placed`` jobs then have one); of any pairs that can run; and of the best fit of memory.
- ``dense_s``, ``dense_gap``: one dense matrix of jobs and GPUs, as in the paper, and what it finds more. It places
  ``dense_placed`` jobs, whoever is first in the queue.
- ``stay``: all jobs placed, a minute later. ``as_new`` is matched as if nobody were anywhere; then costs of a move in
  permille, with the share of jobs that move and the throughput relative to ``as_new``.
- ``process``: what the solver process adds to a solve, and how long a new one takes to be ready: elapsed times.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import structured_fleet
from muxflow_decisions.matching import MatchingPolicy, Problem, Weights, flow, precedence
from muxflow_decisions.matching.certificate import certify
from muxflow_decisions.matching.classes import classify
from muxflow_decisions.matching.optimizer import optimize
from muxflow_decisions.matching.participants import participants
from muxflow_decisions.matching.solve import Solver, solve
from muxflow_scheduler.solver import Solver as SolverProcess

T = TypeVar("T")
POLICY = MatchingPolicy()
STAY_JOBS = 5000


def timed(work: Callable[[], T], repeat: int) -> tuple[float, T]:
    """The shortest CPU time of several, in seconds, and the last result."""
    best_s, result = float("inf"), None
    for _ in range(repeat):
        gc.collect()
        begun = time.process_time()
        result = work()
        best_s = min(best_s, time.process_time() - begun)
    assert result is not None
    return best_s, result


def measure(jobs: int, repeat: int, *, job_classes: int = 1000, gpu_classes: int = 500) -> dict[str, Any]:
    """Measure one size."""
    made = structured_fleet.fleet(jobs, jobs, job_classes=job_classes, gpu_classes=gpu_classes)
    now, later = structured_fleet.problem(made), structured_fleet.problem(structured_fleet.a_minute_later(made))
    gc.freeze()
    gc.disable()  # as the solver process does
    cold_s, found = timed(lambda: solve(now), repeat)

    def warmed() -> Solver:
        solver = Solver()
        solver.solve(now)
        return solver

    solvers = [warmed() for _ in range(repeat)]
    warm_s, warm = timed(lambda: solvers.pop().solve(later), repeat)
    cold_again_s, again = timed(lambda: solve(later), repeat)
    peak_mb = _peak_mb()
    assert warm.summary.cost == again.summary.cost
    best = found.summary.throughput_permille
    greedy, greedy_placed = structured_fleet.greedy(made, POLICY.fits_threshold_permille)
    figures: dict[str, Any] = {
        "placed": len(found.assignments),
        "job_classes": found.summary.job_classes,
        "gpu_classes": found.summary.gpu_classes,
        "cold_s": round(cold_s, 3),
        "warm_s": round(warm_s, 3),
        "cold_again_s": round(cold_again_s, 3),
        **_flow(now, later, repeat),
        "gap": (found.summary.cost - found.summary.bound) / max(1, found.summary.bound),
        "peak_mb": peak_mb,
        "optimum": best / 1000,
        "greedy": round(greedy / best, 4),
        "greedy_placed": greedy_placed,
        "random": round(_relative(now, Weights.RANDOM, best), 4),
        "memory": round(_relative(now, Weights.MEMORY, best), 4),
    }
    if jobs <= 1000:
        dense_s, (dense, placed) = timed(lambda: structured_fleet.dense(made, POLICY.fits_threshold_permille), 1)
        figures |= {"dense_s": round(dense_s, 3), "dense_gap": round(dense / best - 1, 5), "dense_placed": placed}
    return figures


def _flow(now: Problem, later: Problem, repeat: int) -> dict[str, float]:
    classes = classify(now, participants(now))
    counts = precedence.decide(classes).counts
    prices = flow.plan(classes, counts, POLICY, {}).prices
    changed = classify(later, participants(later))
    changed_counts = precedence.decide(changed).counts
    cold_s, _ = timed(lambda: flow.plan(changed, changed_counts, POLICY, {}), repeat)
    warm_s, _ = timed(lambda: flow.plan(changed, changed_counts, POLICY, prices), repeat)
    network, _, _ = flow._network(changed, changed_counts, POLICY, 1)
    carried = optimize(network)
    certificate_s, _ = timed(lambda: certify(network, carried), repeat)
    return {
        "flow_cold_s": round(cold_s, 3),
        "flow_warm_s": round(warm_s, 3),
        "certificate_s": round(certificate_s, 3),
    }


def _relative(now: Problem, weights: Weights, best: int) -> float:
    found = solve(replace(now, policy=replace(POLICY, weights=weights, seed=1)))
    return found.summary.throughput_permille / best


def _peak_mb() -> float:
    kib = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return round(kib * 1024 / 1e6, 1)


def stay(jobs: int, *, job_classes: int = 1000, gpu_classes: int = 500) -> dict[str, Any]:
    """Measure how many jobs move a minute later, and what staying costs."""
    made = structured_fleet.fleet(jobs, jobs, job_classes=job_classes, gpu_classes=gpu_classes)
    later = structured_fleet.a_minute_later(made)
    later = replace(later, job_of=made.job_of, gpu_of=made.gpu_of)  # the same jobs and GPUs, other predictions
    before = solve(structured_fleet.problem(made))
    as_new = solve(structured_fleet.problem(later))
    places = {key: gpu.place for key, gpu in before.assignments}
    best = as_new.summary.throughput_permille
    elsewhere = sum(places.get(key) != gpu.place for key, gpu in as_new.assignments)
    figures: dict[str, Any] = {"jobs": jobs, "as_new_moves": round(elsewhere / len(places), 4)}
    for cost in (0, 5, 20):
        policy = replace(POLICY, migration_cost_permille=cost, moves_max=jobs)
        found = solve(replace(structured_fleet.placed_as(structured_fleet.problem(later), before), policy=policy))
        figures[f"cost_{cost}_moves"] = round(len(found.moves) / len(places), 4)
        figures[f"cost_{cost}_throughput"] = round(found.summary.throughput_permille / best, 5)
    return figures


async def process(jobs: int) -> dict[str, float]:
    """Measure what the border of the process costs, in milliseconds."""
    figures: dict[str, float] = {}
    solver = SolverProcess()
    try:
        begun = time.perf_counter()
        await solver.start()
        figures["start_ms"] = round((time.perf_counter() - begun) * 1e3, 1)
        for name, size, repeat in (("tiny", 1, 200), (f"{jobs}_jobs", jobs, 3)):
            asked = structured_fleet.problem(structured_fleet.fleet(size, size))
            if size == 1:
                asked = replace(asked, speeds=Problem().speeds)
            extra_ms = []
            for _ in range(repeat):
                begun = time.perf_counter()
                found = await solver.solve(asked)
                extra_ms.append((time.perf_counter() - begun) * 1e3 - found.summary.solve_ms)
            figures[f"{name}_extra_ms_p50"] = round(float(np.median(extra_ms)), 2)
    finally:
        await solver.close()
    return figures


def main() -> None:
    """Measure, and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000, 20_000, 100_000], help="jobs, and GPUs")
    parser.add_argument("--repeat", type=int, default=3, help="solves of which the shortest counts")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only is not None:
        print(json.dumps(measure(options.only, options.repeat)))
        return
    sizes = {}
    for size in options.sizes:
        command = [sys.executable, __file__, "--only", str(size), "--repeat", str(options.repeat)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        sizes[str(size)] = json.loads(found.stdout)
        print(f"{size}: {sizes[str(size)]}", file=sys.stderr)
    print(json.dumps({"sizes": sizes, "stay": stay(STAY_JOBS), "process": asyncio.run(process(max(options.sizes)))}))


if __name__ == "__main__":
    main()
