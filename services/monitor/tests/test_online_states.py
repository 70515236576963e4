from __future__ import annotations

from muxflow.contracts import GpuSample
from muxflow_decisions.device.memory import DeviceMemory
from muxflow_device.attribution.processes import Crowd, Process, Side
from muxflow_monitor.online import OnlineStates
from muxflow_monitor.peak import Peak
from muxflow_monitor.watch import View
from muxflow_monitor.workloads import Workload

CHAT = Workload(name="chat", gpu="GPU-a", match="serve", latency_target_ms=20)
SECOND_NS = 1_000_000_000


def process(pid: int, side: Side, name: str = "python") -> Process:
    return Process(pid=pid, name=name, side=side, memory_bytes=None)


def view(
    *processes: Process, peak_pct: float | None = None, uncovered_peak_pct: float | None = None, listed: bool = True
) -> View:
    return View(
        memory=DeviceMemory(),
        sample=GpuSample(gpu="GPU-a"),
        crowd=Crowd(processes) if listed else None,
        peak_pct=peak_pct,
        uncovered_peak_pct=uncovered_peak_pct,
        time_ns=1,
    )


def test_the_declared_workload_is_there_with_its_processes() -> None:
    state = OnlineStates("n").changed("GPU-a", CHAT, view(process(7, Side.ONLINE), process(8, Side.OFFLINE)), now_ns=0)
    assert state is not None
    assert (state.workload, state.pids, state.latency_target_ms) == ("chat", (7,), 20)


def test_nobody_there_is_told_too() -> None:
    state = OnlineStates("n").changed("GPU-a", CHAT, view(process(8, Side.OFFLINE)), now_ns=0)
    assert state is not None
    assert (state.workload, state.pids) == (None, ())


def test_an_undeclared_process_is_named() -> None:
    state = OnlineStates("n").changed("GPU-a", None, view(process(9, Side.UNKNOWN, "jupyter")), now_ns=0)
    assert state is not None
    assert (state.workload, state.pids, state.latency_target_ms) == ("undeclared:jupyter", (9,), None)


def test_where_nobody_can_tell_who_is_there_the_declared_workload_is() -> None:
    state = OnlineStates("n").changed("GPU-a", CHAT, view(listed=False), now_ns=0)
    assert state is not None
    assert state.workload == "chat"


def test_nothing_is_told_before_the_first_look() -> None:
    unseen = View(memory=DeviceMemory(), sample=GpuSample(gpu="GPU-a"))
    assert OnlineStates("n").changed("GPU-a", CHAT, unseen, now_ns=0) is None


def test_the_same_state_is_told_once_and_keeps_its_time() -> None:
    states = OnlineStates("n")
    first = states.changed("GPU-a", CHAT, view(process(7, Side.ONLINE)), now_ns=0)
    assert states.changed("GPU-a", CHAT, view(process(7, Side.ONLINE)), now_ns=0) is None
    grown = states.changed("GPU-a", CHAT, view(process(7, Side.ONLINE), process(9, Side.ONLINE)), now_ns=0)
    assert first is not None
    assert grown is not None
    assert grown.since_ns == first.since_ns


def test_a_peak_is_news_when_it_has_moved_by_five_points_and_ten_seconds_have_passed() -> None:
    states = OnlineStates("n")
    assert states.changed("GPU-a", CHAT, view(peak_pct=20), now_ns=0) is not None
    assert states.changed("GPU-a", CHAT, view(peak_pct=60), now_ns=9 * SECOND_NS) is None
    assert states.changed("GPU-a", CHAT, view(peak_pct=24), now_ns=10 * SECOND_NS) is None
    moved = states.changed("GPU-a", CHAT, view(peak_pct=60), now_ns=10 * SECOND_NS)
    assert moved is not None
    assert moved.activity_peak_pct == 60


def test_a_peak_that_the_beacon_did_not_cover_is_news_too() -> None:
    states = OnlineStates("n")
    assert states.changed("GPU-a", CHAT, view(peak_pct=60, uncovered_peak_pct=0), now_ns=0) is not None
    moved = states.changed("GPU-a", CHAT, view(peak_pct=60, uncovered_peak_pct=60), now_ns=10 * SECOND_NS)
    assert moved is not None
    assert (moved.activity_peak_pct, moved.uncovered_peak_pct) == (60, 60)


def test_there_is_no_peak_before_the_first_reading() -> None:
    assert Peak().pct is None


def test_the_peak_is_the_highest_of_the_last_ten_minutes() -> None:
    peak = Peak()
    for second, activity_pct in ((0, 10.0), (1, 80.0), (2, 20.0), (300, 40.0), (605, 5.0)):
        peak.take(second * SECOND_NS, activity_pct)
    assert peak.pct == 80.0
    peak.take(620 * SECOND_NS, 5.0)
    assert peak.pct == 40.0
