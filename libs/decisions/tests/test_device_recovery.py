"""People are told what a device waits for before it takes new work."""

from __future__ import annotations

import msgspec
import pytest

from muxflow_decisions.device import (
    DeviceMemory,
    DevicePolicy,
    Disable,
    Enable,
    Lost,
    MonitorStarted,
    Read,
    Readings,
    Stimulus,
    advance,
)
from muxflow_decisions.device.recovery import recovery

SECOND = 1_000_000_000
GIB = 2**30
POLICY = DevicePolicy()


def after(*stimuli: Stimulus, readings: dict[str, float] | None = None, seconds: float = 0.0) -> str:
    """What is told once a new monitor has seen these stimuli, and then these readings for some time."""
    memory, now_ns = DeviceMemory(), 1000 * SECOND
    for stimulus in (MonitorStarted(), *stimuli):
        memory = advance(memory, stimulus, now_ns=now_ns, policy=POLICY).memory
    for _ in range(round(10 * seconds)):
        now_ns += SECOND // 10
        read = msgspec.structs.replace(
            Readings(
                now_ns=now_ns,
                online_present=True,
                online_activity_pct=10.0,
                memory_used_bytes=GIB,
                memory_total_bytes=16 * GIB,
            ),
            **(readings or {}),
        )
        memory = advance(memory, Read(readings=read), now_ns=now_ns, policy=POLICY).memory
    return recovery(memory, POLICY)


def test_a_healthy_device_waits_for_nothing() -> None:
    assert after(seconds=3) == ""


def test_a_new_monitor_waits_for_a_calm_time() -> None:
    assert after() == "calm for 1.0 s"


def test_a_disabled_device_waits_for_an_operator() -> None:
    assert after(Disable(reason="new fans")) == "an operator enables it"
    assert after(Disable(), Enable()) == "calm for 1.0 s"


@pytest.mark.parametrize(
    ("readings", "told"),
    [
        ({"online_activity_pct": 75.0}, "online activity is below 60 %, then calm for 2.0 s"),
        ({"online_activity_pct": 95.0}, "online activity is below 60 %, then calm for 5.0 s"),
        ({"slo_ratio": 0.95}, "latency is below 0.8 × target, then calm for 2.0 s"),
        (
            {"memory_used_bytes": 16 * GIB, "offline_memory_bytes": GIB},
            "memory is above 512 MiB free, then calm for 5.0 s",
        ),
    ],
)
def test_a_limit_that_holds_must_be_clear_first(readings: dict[str, float], told: str) -> None:
    assert after(readings=readings, seconds=3) == told


def test_a_lost_gpu_must_answer_first() -> None:
    assert after(Lost(message="fell off the bus")).startswith("the GPU answers again, then calm for ")
