"""What `top` shows: a board that events change, and frames that fit the terminal whatever is on it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from muxflow.cli.top.board import RECENT_S, Board
from muxflow.cli.top.frame import lines
from muxflow.contracts import (
    DeviceAlert,
    DeviceCondition,
    DeviceState,
    DeviceSummary,
    EvictionAlert,
    Gpu,
    GpuSample,
    NodeTelemetry,
    OnlineAlert,
)

SECOND_NS = 10**9
NOW_NS = 1_790_000_000 * SECOND_NS
GIB = 2**30
CAUSE = "online activity 92 % ≥ 90 % for 1.0 s"


def device(index: int = 0, node: str = "vm", **fields: object) -> DeviceSummary:
    gpu = Gpu(uuid=f"GPU-{node}-{index}", kind="T4", memory_bytes=16 * GIB, index=index)
    summary = DeviceSummary(
        node=node,
        gpu=gpu,
        alive=True,
        watched=True,
        state=DeviceCondition.HEALTHY,
        since_ns=NOW_NS - 60 * SECOND_NS,
        sampled_ns=NOW_NS - SECOND_NS,
        sample=GpuSample(gpu=gpu.uuid),
        budget_permille=900,
    )
    return replace(summary, **fields)


def telemetry(time_ns: int = NOW_NS, **readings: object) -> NodeTelemetry:
    return NodeTelemetry(node="vm", time_ns=time_ns, gpus=(replace(GpuSample(gpu="GPU-vm-0"), **readings),))


def eviction(number: int = 1, total_ms: float | None = None, **fields: object) -> EvictionAlert:
    alert = EvictionAlert(
        id=f"{number}.{total_ms}",
        node="vm",
        gpu="GPU-vm-0",
        tenant="default",
        job="train",
        attempt=number,
        cause=CAUSE,
        workload="chat",
        total_ms=total_ms,
    )
    return replace(alert, **fields)


def board(*devices: DeviceSummary) -> Board:
    one = Board()
    one.place(devices)
    one.count(running=2, waiting=11)
    return one


def drawn(one: Board, width: int = 80, height: int | None = 24) -> list[str]:
    return [line.plain.rstrip() for line in lines(one, width=width, height=height, now_ns=NOW_NS)]


def test_a_frame_tells_of_each_gpu_who_is_there_and_how_much_each_has() -> None:
    one = board(
        device(workload="chat", tenant="default", job="train", attempt=3),
        device(1, tenant="vision", job="eval", attempt=1),
        device(2, watched=False, state=None, sample=None, sampled_ns=0, budget_permille=None),
    )
    one.read(
        telemetry(
            sm_activity_pct=62.0,
            online_activity_pct=40.2,
            offline_busy_permille=548,
            memory_used_bytes=12 * GIB,
            budget_permille=800,
        )
    )
    head, states, *table = drawn(one)
    assert head.endswith("3 GPUs on vm, 2 jobs there, 11 waiting")
    assert states.split() == ["2", "healthy", "1", "unwatched"]
    assert [line.split() for line in table] == [
        ["GPU", "STATE", "ONLINE", "OFFLINE", "BUDGET", "BUSY", "MEMORY"],
        ["T4", "#0", "healthy", "chat", "40%", "train#3", "55%", "80%", "62%", "12.0/16G"],
        ["T4", "#1", "healthy", "-", "-", "vision/eval#1", "-", "90%", "-", "16G"],
        ["T4", "#2", "unwatched", "-", "-", "-", "-", "-", "-", "16G"],
    ]


def test_a_change_of_state_is_told_with_its_cause_and_its_age() -> None:
    one = board(device())
    one.change(
        DeviceState(
            node="vm",
            gpu="GPU-vm-0",
            state=DeviceCondition.OVERLIMIT,
            since_ns=NOW_NS - 12 * SECOND_NS,
            cause=CAUSE,
            budget_permille=50,
        )
    )
    assert f"T4 #0 overlimit for 12 s: {CAUSE}" in drawn(one)
    assert drawn(one)[3].split() == ["T4", "#0", "overlimit", "-", "-", "-", "-", "-", "-", "16G"]


def test_an_answer_that_was_on_its_way_takes_nothing_back_that_events_have_told() -> None:
    one = board(device())
    one.read(telemetry(sm_activity_pct=62.0, budget_permille=500))
    one.change(
        DeviceState(node="vm", gpu="GPU-vm-0", state=DeviceCondition.UNHEALTHY, since_ns=NOW_NS, budget_permille=100)
    )
    one.place([device(job="train", tenant="default", attempt=1)])
    (now,) = one.devices.values()
    assert (now.state, now.job) == (DeviceCondition.UNHEALTHY, "train")
    assert now.sample is not None
    assert now.sample.sm_activity_pct == 62.0


def test_an_eviction_is_one_line_that_changes_when_the_job_is_gone() -> None:
    one = board(device())
    one.tell(eviction(), NOW_NS - 9 * SECOND_NS)
    assert f" 9.0 s ago  default/train#1 evicted from T4 #0 for chat, going: {CAUSE}" in drawn(one, width=120)
    one.tell(eviction(total_ms=412.3), NOW_NS - 8 * SECOND_NS)
    one.tell(eviction(), NOW_NS - 9 * SECOND_NS)
    told = [line for line in drawn(one, width=120) if "train" in line]
    assert told == [f" 8.0 s ago  default/train#1 evicted from T4 #0 for chat, gone in 412 ms: {CAUSE}"]


def test_alerts_of_devices_and_online_services_are_told_and_old_ones_go() -> None:
    one = board(device())
    one.tell(DeviceAlert(id="1", node="vm", gpu="GPU-vm-0", severity="critical", message="fault: xid 31"), NOW_NS)
    one.tell(OnlineAlert(id="2", node="vm", workload="chat", message="p99 63 ms, target 50 ms"), NOW_NS)
    one.tell(eviction(), NOW_NS - int((RECENT_S + 1) * SECOND_NS))
    assert drawn(one)[-3:] == [
        "LATELY",
        " 0.0 s ago  T4 #0 fault: xid 31",
        " 0.0 s ago  chat on vm: p99 63 ms, target 50 ms",
    ]


def test_silence_of_a_monitor_or_a_node_is_told_and_so_is_what_may_be_old() -> None:
    one = board(device(sampled_ns=NOW_NS - 8 * SECOND_NS), device(1, alive=False, closed="its node is not alive"))
    one.trouble = "not connected; what is shown may be old"
    frame = drawn(one)
    assert frame[1] == "not connected; what is shown may be old"
    assert frame[-3:] == ["WHY", "T4 #0 healthy for 60 s: no readings for 8.0 s", "T4 #1 lost: its node is not alive"]


LONG = "a-very-long-name-that-somebody-has-given-to-it"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 15), (40, 10), (20, 4), (1, 1), (200, 60)])
@pytest.mark.parametrize("count", [0, 1, 8, 64])
def test_a_frame_never_exceeds_the_terminal(width: int, height: int, count: int) -> None:
    one = board(*(device(index, LONG, workload=LONG, tenant=LONG, job=LONG, attempt=9) for index in range(count)))
    for number in range(20):
        one.tell(eviction(number, cause=CAUSE * 5), NOW_NS)
    frame = lines(one, width=width, height=height, now_ns=NOW_NS)
    assert len(frame) <= height
    assert max(line.cell_len for line in frame) <= width


def test_at_80_columns_long_names_are_cut_and_figures_are_whole() -> None:
    one = board(device(0, workload=LONG, tenant="default", job=LONG, attempt=9), device(1, "other"))
    one.read(telemetry(online_activity_pct=40.0, offline_busy_permille=1000, memory_used_bytes=16 * GIB))
    row = next(line for line in drawn(one) if line.startswith("vm/0 T4"))
    assert len(row) == 80
    assert [word for word in row.split() if word[-1] in "%G"] == ["40%", "100%", "16.0/16G"]


def test_of_more_gpus_than_there_is_room_for_the_troubled_ones_are_shown() -> None:
    troubled = [
        device(index, state=DeviceCondition.UNHEALTHY, cause=CAUSE) if index in (40, 63) else device(index)
        for index in range(64)
    ]
    frame = drawn(board(*troubled))
    assert any(line.startswith("T4 #40 unhealthy") for line in frame)
    assert any(line.startswith("T4 #63 unhealthy") for line in frame)
    assert any(line.startswith("… and ") and line.endswith(" more GPUs") for line in frame)
    assert f"T4 #63 unhealthy for 60 s: {CAUSE}" in frame


def test_where_nobody_looks_nothing_is_cut() -> None:
    one = board(*(device(index, LONG, workload=LONG, cause=CAUSE * 3) for index in range(64)))
    frame = drawn(one, width=10_000, height=None)
    assert sum(LONG in line for line in frame) >= 64
