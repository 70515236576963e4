"""Offline work beside online processes that carry the beacon: held against the simulated device's own log."""

from __future__ import annotations

import bisect
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from muxflow_decisions.device.gate import GateState, JobPhase
from muxflow_simgpu import Operation

if TYPE_CHECKING:
    from conftest import GpuNode

_US = 1_000
_MS = 1_000_000

_BEGIN = """
import time
from driver import *
begin()
[spin] = functions("spin")
where = stream()
"""

_SERVE = f"""{_BEGIN}
say("ready"); input()
for _ in range(60):
    for _ in range(3):
        launch(spin, 1_000_000, where)
    call("cuStreamSynchronize", where)
    time.sleep(0.005)
"""

_OVER_AND_OVER = f"""{_BEGIN}
event = [c_void_p(), c_void_p()]
for each in event:
    call("cuEventCreate", byref(each), c_uint(0))
say("ready")
i = 0
while True:
    launch(spin, 1_000_000, where)
    call("cuEventRecord", event[i % 2], where)
    i += 1
    call("cuEventSynchronize", event[i % 2])
"""


def _of(node: GpuNode, process: subprocess.Popen[str]) -> list[Operation]:
    return [operation for operation in node.machine.operations(0) if operation.pid == process.pid]


def _serve_beside(node: GpuNode, programs: Path) -> tuple[list[Operation], list[Operation]]:
    """Serves a few hundred requests beside a job; gives what online and offline kernels there were."""
    online = node.online(_SERVE)
    assert node.hear(online) == "ready"
    offline = node.start(programs / "program_kernels", "us=100", "seconds=1.2")
    node.goes_on(offline.pid)
    node.tell(online)
    assert online.wait(timeout=30) == 0
    assert offline.wait(timeout=30) == 0
    return _of(node, online), _of(node, offline)


def _launched_beside(online: list[Operation], offline: list[Operation]) -> float:
    """Share of requests beside which something was launched. A launch on its way when a request comes is not late."""
    launched = sorted(operation.enqueued_ns for operation in offline)
    requests = [online[i : i + 3] for i in range(0, len(online), 3)]
    met = [
        bisect.bisect(launched, kernels[-1].ended_ns) > bisect.bisect(launched, kernels[0].enqueued_ns + 200 * _US)
        for kernels in requests
    ]
    return sum(met) / len(met)


def test_nothing_is_launched_beside_an_active_online_side_and_much_between(gpu_node: GpuNode, programs: Path) -> None:
    online, offline = _serve_beside(gpu_node, programs)
    assert len(online) == 180
    assert _launched_beside(online, offline) <= 0.1
    begin_ns, end_ns = online[0].enqueued_ns, online[-1].ended_ns
    between = [operation for operation in offline if begin_ns < operation.enqueued_ns < end_ns]
    assert sum(operation.work_ns for operation in between) > 0.25 * (end_ns - begin_ns)


def test_one_that_comes_later_is_seen_and_what_it_holds_counts_as_throttled(gpu_node: GpuNode) -> None:
    offline = gpu_node.python(f"{_BEGIN}\nsay('ready')\nwhile True:\n    launch(spin, 50_000, where)\n")
    assert gpu_node.hear(offline) == "ready"
    online = gpu_node.online(_OVER_AND_OVER)
    assert gpu_node.hear(online) == "ready"
    first = gpu_node.slot_that(offline.pid, lambda slot: slot.throttled_ns)
    later = gpu_node.slot_that(offline.pid, lambda slot: slot.throttled_ns > first.throttled_ns + 50 * _MS)
    assert later.frozen_ns == first.frozen_ns


def test_without_a_hold_off_the_beacon_is_not_obeyed(gpu_node: GpuNode, programs: Path) -> None:
    page = gpu_node.device_dir.device_page
    page.chmod(0o644)
    with page.open("r+b") as file:
        file.seek(128 + 20)
        file.write(bytes(4))
    assert _launched_beside(*_serve_beside(gpu_node, programs)) > 0.5


def test_an_online_process_that_stands_still_keeps_nobody_off(gpu_node: GpuNode) -> None:
    online = gpu_node.online(f"{_BEGIN}\nlaunch(spin, 1000, where)\nsay('launched')\ninput()\n")
    assert gpu_node.hear(online) == "launched"
    offline = gpu_node.python(f"{_BEGIN}\nwhile True:\n    launch(spin, 50_000, where)\n")
    gpu_node.goes_on(offline.pid, 200)


def test_an_online_process_that_was_killed_keeps_nobody_off(gpu_node: GpuNode) -> None:
    online = gpu_node.online(_OVER_AND_OVER)
    assert gpu_node.hear(online) == "ready"
    offline = gpu_node.python(f"{_BEGIN}\nwhile True:\n    launch(spin, 50_000, where)\n")
    gpu_node.slot_that(offline.pid, lambda slot: slot.throttled_ns > 20 * _MS)
    online.kill()
    gpu_node.goes_on(offline.pid, 200)


def test_a_job_that_saves_its_state_is_not_kept_off(gpu_node: GpuNode) -> None:
    online = gpu_node.online(_OVER_AND_OVER)
    assert gpu_node.hear(online) == "ready"
    gpu_node.order(GateState.TRICKLE, JobPhase.CHECKPOINT, budget_permille=500)
    offline = gpu_node.python(f"{_BEGIN}\nwhile True:\n    launch(spin, 50_000, where)\n")
    gpu_node.goes_on(offline.pid, 20)


def test_a_kernel_that_waits_for_one_that_the_beacon_holds_does_not_lock_the_job_up(gpu_node: GpuNode) -> None:
    offline = gpu_node.python("""
        from driver import *
        begin()
        wait_for, set_word = functions("wait_for", "set")
        one, other, word = stream(), stream(), allocate(8)
        call("cuMemcpyHtoD_v2", c_uint64(word), bytes(8), c_size_t(8))
        launch(wait_for, word, one)
        say("waits"); input()
        launch(set_word, word, other)
        call("cuCtxSynchronize")
        say("done")
    """)
    assert gpu_node.hear(offline) == "waits"
    online = gpu_node.online(_OVER_AND_OVER)
    assert gpu_node.hear(online) == "ready"
    gpu_node.tell(offline)
    assert gpu_node.hear(offline) == "done"
