"""What the library costs programs that never use a GPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from xcuda.node import Node, say

PROGRAMS = {"/bin/true": ["/bin/true"], "python -c pass": [sys.executable, "-c", "pass"]}


def start_ms(command: list[str], extra: Mapping[str, str]) -> float:
    """Start a program and wait for its end."""
    begin_ns = time.perf_counter_ns()
    pid = os.posix_spawn(command[0], command, {**os.environ, **extra})
    _, status = os.waitpid(pid, 0)
    took_ms = (time.perf_counter_ns() - begin_ns) / 1e6
    if status:
        raise RuntimeError(f"{command} ended with {status}")
    return took_ms


def times(node: Node, repeat: int) -> dict[str, Any]:
    """Measure what the library adds to a start: the shortest of many, with and without in turn."""
    added = {}
    for name, command in PROGRAMS.items():
        bare, preloaded = [], []
        for _ in range(repeat):
            bare.append(start_ms(command, {}))
            preloaded.append(start_ms(command, node.offline()))
        added[name] = round(min(preloaded) - min(bare), 3)
        say(f"ms added to the start of {name}: {added[name]} ({min(bare):.2f} without)")
    return {"startup_ms_added": max(added.values()), "startup_ms_added_by_program": added}
