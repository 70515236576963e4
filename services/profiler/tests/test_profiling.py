"""What a profiler makes of telemetry, with its own credentials on a real server."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from muxflow.bus.provision import provision
from muxflow.contracts import CorunProfile, DeviceCondition, OfflineProfile, OnlineProfile, Purpose, Role
from muxflow.testing import TestServer
from scripted_telemetry import (
    GIB,
    KIND,
    OTHER_GPU,
    WORKLOAD,
    ProfilerProcess,
    Profiles,
    ScriptedFleet,
)
from watched_node import until

MakeProfiler = Callable[..., Awaitable[ProfilerProcess]]


async def confident(profiles: Profiles, job: str) -> OfflineProfile:
    await until(lambda: profiles.offline(job) is not None, f"a profile of {job}")
    profile: OfflineProfile = profiles.offline(job)
    assert profile.failure is None
    assert profile.confident
    return profile


async def taken(profiler: ProfilerProcess, samples: int) -> None:
    """Wait until so many readings are taken in: what follows on another stream comes later."""
    await until(lambda: profiler.metrics()["muxflow_profiler_samples_total"] == samples, f"{samples} readings")


def measurements(profiler: ProfilerProcess, outcome: str) -> float:
    return profiler.metrics().get(f'muxflow_profiler_measurements_total{{outcome="{outcome}"}}', 0)


async def failed(profiles: Profiles, job: str) -> str:
    await until(lambda: profiles.offline(job) is not None, f"a profile of {job}")
    profile: OfflineProfile = profiles.offline(job)
    assert not profile.confident
    return profile.failure or ""


# --- alone


@pytest.mark.parametrize("purpose", [Purpose.RUN, Purpose.PROFILE])
async def test_a_job_that_runs_alone_is_measured_whatever_it_runs_for(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler, purpose: Purpose
) -> None:
    slot = await fleet.place("train", purpose=purpose)
    profiler = await make_profiler()
    await fleet.run(slot, rate=2000, seconds=20)
    profile = await confident(profiles, "train")
    assert (profile.key, profile.gpu_kind, profile.sm_share_pct) == ("default/train", KIND, 90)
    assert profile.launches_per_s == 2000
    assert (profile.busy_permille, profile.kernel_time_us_mean) == (800, 400)
    assert (profile.utilization_pct, profile.sm_activity_pct, profile.memory_peak_bytes) == (80, None, GIB)
    assert (profile.measured_s, profile.samples) == (5, 5)
    assert profile.source.startswith("profiler@")
    await taken(profiler, 20)
    assert [event for event in profiles.all if isinstance(event, OfflineProfile)] == [profile]
    assert measurements(profiler, "confident") == 1
    metrics = profiler.metrics()
    assert metrics['muxflow_profiler_profiles{kind="offline"}'] == 1
    assert metrics["muxflow_profiler_measuring"] == 0


async def test_telemetry_from_before_its_start_is_measured_too(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    slot = await fleet.place("train")
    await fleet.run(slot, rate=2000, seconds=20)
    await make_profiler()
    assert (await confident(profiles, "train")).launches_per_s == 2000


async def test_readings_of_a_time_of_which_nobody_knows_who_was_served_do_not_count(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    await fleet.serve(None, since_s=10)
    slot = await fleet.place("train")
    await fleet.run(slot, rate=500, seconds=10)
    await fleet.run(slot, rate=2000, begin_s=10, seconds=20)
    await make_profiler()
    assert (await confident(profiles, "train")).launches_per_s == 2000


async def test_a_job_that_ended_before_it_was_known_has_a_profile_that_says_so(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    short = await fleet.place("short")
    moved = await fleet.place("moved", gpu=OTHER_GPU)
    profiler = await make_profiler()
    await fleet.run(short, rate=2000, seconds=4)
    await fleet.run(moved, rate=2000, seconds=4, gpu=OTHER_GPU)
    await taken(profiler, 8)
    await fleet.clear(gpu=OTHER_GPU, withdrawn=[moved])
    await fleet.clear()
    assert await failed(profiles, "short") == "ended too early: 1.0 s count of the 5 s that are needed"
    await until(lambda: measurements(profiler, "interrupted") == 1, "that the other one is over too")
    assert profiles.offline("moved") is None


async def test_a_gpu_that_was_kept_for_a_job_that_launched_nothing_is_told_so(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    await fleet.place("plain", gpu=OTHER_GPU)
    await fleet.place("hello", purpose=Purpose.PROFILE)
    profiler = await make_profiler()
    await fleet.clear(gpu=OTHER_GPU)
    await fleet.clear()
    assert await failed(profiles, "hello") == "ended, and had launched nothing"
    assert profiles.offline("plain") is None
    assert measurements(profiler, "failed") == 1


async def test_an_attempt_that_went_with_a_device_in_trouble_says_nothing_about_its_job(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    slot = await fleet.place("evicted", purpose=Purpose.PROFILE)
    profiler = await make_profiler()
    await fleet.run(slot, rate=2000, seconds=4)
    await fleet.tell(4, slot, 8000, state=DeviceCondition.DISABLED)
    await taken(profiler, 5)
    await fleet.clear()
    await until(lambda: measurements(profiler, "interrupted") == 1, "that it is over")
    assert profiles.offline("evicted") is None


async def test_a_good_profile_of_an_earlier_profiler_outlives_a_failure(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    slot = await fleet.place("train")
    profiler = await make_profiler()
    await fleet.run(slot, rate=2000, seconds=12)
    good = await confident(profiles, "train")
    profiler.end(signal.SIGKILL)
    await fleet.clear()
    slot = await fleet.place("train", gpu=OTHER_GPU, purpose=Purpose.PROFILE)
    await profiler.start()
    await fleet.tell(100, slot, 100, gpu=OTHER_GPU, usage={"refused_bytes": GIB})
    await until(lambda: measurements(profiler, "failed") == 1, "a failure")
    assert profiles.offline("train") == good


# --- beside a service


async def test_a_job_beside_a_service_is_compared_with_itself_alone(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    alone = await fleet.place("train")
    await fleet.serve(WORKLOAD, gpu=OTHER_GPU)
    slot = await fleet.place("train", gpu=OTHER_GPU, share=40)
    await make_profiler()
    await fleet.run(alone, rate=2000, seconds=12)
    await confident(profiles, "train")
    await fleet.run(slot, rate=500, begin_s=100, seconds=30, gpu=OTHER_GPU, online_activity_pct=60.0)
    await until(lambda: profiles.corun("train") and profiles.corun("train").measured_s == 20, "two windows")
    pair: CorunProfile = profiles.corun("train")
    assert (pair.normalized_throughput, pair.online_activity_pct, pair.sm_share_pct) == (0.25, 60, 40)
    assert (pair.fits, pair.samples) == (True, 20)
    assert profiles.offline("train").launches_per_s == 2000  # what was measured beside it is no profile


async def test_a_pair_that_does_not_fit_is_told_at_once(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    await fleet.serve(WORKLOAD)
    slot = await fleet.place("big", share=40)
    await make_profiler()
    over = DeviceCondition.OVERLIMIT
    await fleet.tell(1, slot, 100, state=over, memory_used_bytes=16 * GIB, memory_total_bytes=16 * GIB)
    await until(lambda: profiles.corun("big") is not None, "the pair")
    assert (profiles.corun("big").fits, profiles.corun("big").normalized_throughput) == (False, None)


# --- services


async def serve_a_while(fleet: ScriptedFleet, activity_pct: float, *, begin_s: int = 0) -> None:
    for at_s in range(begin_s, begin_s + 40):
        await fleet.tell(at_s, online_activity_pct=activity_pct)


def counted(profiles: Profiles) -> int:
    return sum(each.samples for each in profiles.online().intervals) if profiles.online() else 0


async def online(profiles: Profiles, activity_pct: float) -> OnlineProfile:
    await until(lambda: profiles.online() and profiles.online().activity_pct_p99 == activity_pct, "the service")
    profile: OnlineProfile = profiles.online()
    return profile


async def test_a_service_is_known_with_its_forecast(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    await fleet.serve(WORKLOAD)
    await make_profiler()
    await serve_a_while(fleet, 35)
    profile = await online(profiles, 35)
    assert profile.activity_pct_mean == pytest.approx(35)
    assert (profile.forecast_peak_pct, profile.gpus) == (45, 1)
    assert profile.memory_peak_bytes == 4 * GIB
    assert profile.forecast_until_ns > profile.time_ns
    await until(lambda: counted(profiles) == 40, "all of its readings")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_profiler_that_is_started_again_goes_on_with_what_it_told_last(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler, number: signal.Signals
) -> None:
    await fleet.serve(WORKLOAD)
    profiler = await make_profiler()
    await serve_a_while(fleet, 35)
    await taken(profiler, 40)
    before = await online(profiles, 35)
    profiler.end(number)
    await profiler.start()
    await serve_a_while(fleet, 50, begin_s=100)
    after = await online(profiles, 50)
    assert after.id != before.id
    assert after.forecast_peak_pct == 60
    assert 40 < counted(profiles) <= 80


async def test_what_nobody_is_served_with_is_no_service(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    profiler = await make_profiler()
    await serve_a_while(fleet, 35)
    await taken(profiler, 40)
    assert profiles.all == []


# --- hardships


async def test_a_server_that_was_away_costs_what_it_had_in_memory_and_no_more(
    fleet: ScriptedFleet, server: TestServer, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    slot = await fleet.place("train")
    profiler = await make_profiler()
    await fleet.run(slot, rate=2000, seconds=5)
    await taken(profiler, 5)
    await server.kill()
    await server.start()
    async with await server.connect(Role.PROVISIONER) as provisioner:
        await provision(provisioner)  # telemetry is kept in memory: its stream went with the server
    await fleet.connected()
    await fleet.run(slot, rate=2000, begin_s=5, seconds=10)
    assert (await confident(profiles, "train")).launches_per_s == 2000
    assert profiler.http("/readyz")[0] == 200


async def test_what_is_no_telemetry_is_left_out(
    fleet: ScriptedFleet, profiles: Profiles, make_profiler: MakeProfiler
) -> None:
    slot = await fleet.place("train")
    await make_profiler()
    await fleet.tell_bytes(b"no JSON")
    await fleet.tell_bytes(b'{"node": "node.a", "gpus": [{"gpu": "GPU-1", "online_activity_pct": 300}]}')
    await fleet.run(slot, rate=2000, seconds=12)
    assert (await confident(profiles, "train")).launches_per_s == 2000


async def test_settings_that_contradict_each_other_end_it_with_a_line_that_names_them(
    server: TestServer, tmp_path: Path
) -> None:
    profiler = ProfilerProcess(server, tmp_path / "profiler.log", alone={"least_s": 90})
    assert profiler.exit_code() == 1
    assert "profiler.alone: least_s (90) must be at most longest_s (60)" in profiler.log.read_text()
