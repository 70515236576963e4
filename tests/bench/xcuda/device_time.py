"""How long the device works for offline work: with the window in force, and under a budget. By the device's own log."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import msgspec

from muxflow_simgpu import KERNELS, Operation, busy_share
from muxflow_simgpu.figures import MILLISECOND_NS, work_ns
from xcuda.node import WINDOW_US, Gpu, Node, say

SECOND_NS = 1_000_000_000
ASKED = {"200 us": ("us=200",), "20 us": ("us=20",)}
MORE = {
    "5 us": ("us=5",),
    "200 us, synchronous": ("us=200", "sync"),
    "200 us, 4 streams": ("us=200", "streams=4"),
    "5 us and 20 ms": ("us=5,20000",),
    "50 us and 5 ms, of one grid": ("us=50,5000", "alike"),
}
LEARNING_NS = 150 * MILLISECOND_NS

# --- the window


def throughput(gpu: Gpu, arguments: tuple[str, ...], seconds: float, extra: Mapping[str, str]) -> float:
    """Find what share of the device's time kernels get done, after a while."""
    kernels = _kernels(gpu.run("program_kernels", *arguments, f"seconds={seconds}", extra=extra))
    begin_ns, end_ns = (kernels[0].started_ns or 0) + LEARNING_NS, kernels[-1].enqueued_ns
    return work_ns(kernels, begin_ns, end_ns) / (end_ns - begin_ns)


def ratios(gpu: Gpu, node: Node, rounds: int, seconds: float, more: bool = True) -> dict[str, Any]:
    """Compare the throughput with the window in force to that without the library, in turn. `more`: in all cases."""
    node.open_gate(window_us=WINDOW_US)
    medians = {}
    for name, arguments in (ASKED | MORE if more else ASKED).items():
        found = []
        for _ in range(rounds if name in ASKED else 1):
            bare = throughput(gpu, arguments, seconds, {})
            found.append(throughput(gpu, arguments, seconds, node.offline()) / bare)
        medians[name] = round(statistics.median(found), 4)
        say(f"throughput with a window of {WINDOW_US} µs, {name}: {[round(each, 4) for each in found]}")
    return {
        "window_throughput_ratio": min(medians[name] for name in ASKED),
        "window_throughput_ratio_by_case": medians,
    }


# --- the budget


class Case(msgspec.Struct, frozen=True):
    """A program that would use more than each of the budgets."""

    arguments: tuple[str, ...]
    budgets_permille: tuple[int, ...] = (200, 700)


CASES = {
    "short": Case(("us=50",)),
    "short, synchronous": Case(("us=50", "sync"), (100, 250)),
    "1 ms": Case(("us=1000",)),
    "1 ms, synchronous": Case(("us=1000", "sync"), (100, 500)),
    "long": Case(("us=20000",)),
    "mixed": Case(("us=50,5000",)),
    "mixed, of one grid": Case(("us=50,5000", "alike")),
    "4 streams": Case(("us=200", "streams=4")),
    "16 streams": Case(("us=200", "streams=16")),
    "mixed, 16 streams": Case(("us=100,2000", "streams=16")),
    "4 threads": Case(("us=300", "threads=4")),
    "graphs": Case(("us=100,50,20", "graph")),
}
SETTLE_NS = 400 * MILLISECOND_NS
STEP_NS = 25 * MILLISECOND_NS


def error_points(operations: list[Operation], budget_permille: int) -> float:
    """Find how far, over any second after the first moments, the device's busy time was from the budget."""
    kernels = _kernels(operations)
    begin_ns = (kernels[0].started_ns or 0) + SETTLE_NS
    errors = [
        busy_share(kernels, at_ns, at_ns + SECOND_NS) * 100 - budget_permille / 10
        for at_ns in range(begin_ns, kernels[-1].enqueued_ns - SECOND_NS, STEP_NS)
    ]
    return max(errors, key=abs)


def budget_errors(gpu: Gpu, node: Node, seconds: float, more: bool = True) -> dict[str, Any]:
    """Have the device work by budgets. `more`: in all cases."""
    found = {}
    for name, case in CASES.items() if more else [next(iter(CASES.items()))]:
        for budget_permille in case.budgets_permille:
            node.open_gate(budget_permille=budget_permille)
            program = ("program_kernels", *case.arguments, f"seconds={seconds}")
            operations = gpu.run(*program, extra=node.offline())
            found[f"{name}, {budget_permille} permille"] = round(error_points(operations, budget_permille), 2)
        told = {budget: found[f"{name}, {budget} permille"] for budget in case.budgets_permille}
        say(f"points above the budget, {name}: {told}")
    worst = max(abs(each) for each in found.values())
    return {"budget_error_points": worst, "budget_error_points_by_case": found}


def _kernels(operations: list[Operation]) -> list[Operation]:
    return sorted(
        (each for each in operations if each.kind in KERNELS and each.started_ns is not None),
        key=lambda each: each.started_ns or 0,
    )
