"""Jobs are measured alone before they run beside others, where that is possible and does not keep them waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from jobs_over_bus import Outcomes, status, submit, until, until_state
from muxflow.bus import Bus, NoResponders
from muxflow.bus.credentials import Principal
from muxflow.contracts import (
    ALL_TENANTS,
    DeviceCondition,
    DevicesQuery,
    DeviceSummary,
    JobReply,
    JobsQuery,
    JobState,
    OfflineProfile,
    OnlineProfile,
    Purpose,
    Role,
    Slot,
    StopCause,
)
from muxflow.contracts.catalogue import PROFILES_OFFLINE, PROFILES_ONLINE, QUERY_DEVICES, QUERY_JOBS
from scripted_node import ScriptedNode
from world import World

HEALTHY = DeviceCondition.HEALTHY
PATIENCE_S = 2.0
SECOND_NS = 10**9


@pytest.fixture
def env() -> dict[str, str]:
    return {"MUXFLOW_SCHEDULER__PROFILE_PATIENCE_S": str(PATIENCE_S), "MUXFLOW_SCHEDULER__PREDICTION": "false"}


@pytest.fixture
async def profiler(world: World) -> AsyncIterator[Bus]:
    async with await world.connect(Principal(role=Role.PROFILER)) as bus:
        yield bus


async def open_gpus(node: ScriptedNode, *served: str | None) -> None:
    """Have each GPU healthy, with this online workload or none."""
    for gpu, workload in zip(node.gpus, served, strict=True):
        await node.serves(gpu, workload, 40.0 if workload else 0.0)
        await node.becomes(gpu, HEALTHY)


async def measured(profiler: Bus, key: str, *, failure: str | None = None) -> None:
    """Publish a profile, or that there is none because of this."""
    profile = OfflineProfile(
        key=f"default/{key}",
        gpu_kind="T4",
        launches_per_s=800.0,
        busy_permille=930,
        confident=failure is None,
        failure=failure,
    )
    await profiler.publish(PROFILES_OFFLINE, profile, key=profile.key, gpu_kind=profile.gpu_kind)


async def wanted(node: ScriptedNode, job: str, purpose: Purpose, attempt: int = 1) -> tuple[str, Slot]:
    """Wait until a job is wanted for this."""

    def look() -> tuple[str, Slot] | None:
        for gpu, decision in node.decisions.items():
            for slot in decision.slots:
                if (slot.job, slot.purpose, slot.attempt) == (job, purpose, attempt):
                    return gpu, slot
        return None

    found: tuple[str, Slot] = await node.until(look)
    return found


async def told(user: Bus, job: str, words: str) -> JobReply:
    """Wait until the story of a job has these words."""
    reply: JobReply = await until(
        lambda: status(user, job), lambda reply: any(words in step.detail for step in reply.record.story)
    )
    return reply


async def test_a_job_is_measured_alone_on_the_whole_of_a_gpu_without_an_online_workload_and_goes_on_there(
    user: Bus, profiler: Bus, watched: ScriptedNode, outcomes: Outcomes
) -> None:
    await open_gpus(watched, "chat", None)
    await submit(user, "x")
    gpu, slot = await wanted(watched, "x", Purpose.PROFILE)
    assert (gpu, slot.sm_share_pct, slot.profile_key) == (watched.gpus[1], 100, "default/x")
    await watched.started(gpu, slot)
    record = await until_state(user, "x", JobState.PROFILING)
    assert not record.profiled
    assert (await status(user, "x")).profile == "it is being measured now"
    await measured(profiler, "x")
    assert await wanted(watched, "x", Purpose.RUN) == (gpu, replace(slot, purpose=Purpose.RUN))
    reply = await status(user, "x")
    assert (reply.record.state, reply.record.attempt, reply.record.profiled) == (JobState.RUNNING, 1, True)
    assert reply.profile == "measured alone on T4: 800 launches/s, busy 93% of the time"
    await watched.exited(gpu, slot)
    await outcomes.of("x", "finished")


async def test_a_measured_job_makes_room_for_one_before_it_in_the_queue(
    user: Bus, profiler: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, None, None)
    await watched.becomes(watched.gpus[1], DeviceCondition.DISABLED)
    await submit(user, "x")
    gpu, slot = await wanted(watched, "x", Purpose.PROFILE)
    await watched.started(gpu, slot)
    await until_state(user, "x", JobState.PROFILING)
    await submit(user, "urgent", priority=5)
    await until_state(user, "urgent", JobState.PENDING)
    await measured(profiler, "x")
    await watched.withdrawn("x")
    await watched.exited(gpu, slot, code=None, stopped_by=StopCause.DECISION)
    await wanted(watched, "urgent", Purpose.PROFILE)
    assert (await until_state(user, "x", JobState.PENDING)).profiled


async def test_a_measured_job_stays_where_only_those_behind_it_wait(
    user: Bus, profiler: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, None, None)
    await watched.becomes(watched.gpus[1], DeviceCondition.DISABLED)
    await submit(user, "x")
    gpu, slot = await wanted(watched, "x", Purpose.PROFILE)
    await watched.started(gpu, slot)
    await submit(user, "later")
    await until_state(user, "later", JobState.PENDING)
    await measured(profiler, "x")
    await wanted(watched, "x", Purpose.RUN)


async def test_of_jobs_with_one_key_one_is_measured_and_the_other_runs_as_soon_as_the_profile_is_known(
    user: Bus, profiler: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, None, "chat")
    await submit(user, "a", profile_key="net")
    await wanted(watched, "a", Purpose.PROFILE)
    await submit(user, "b", profile_key="net")
    assert not (await until_state(user, "b", JobState.PENDING)).profiled
    await measured(profiler, "net")
    gpu, slot = await wanted(watched, "b", Purpose.RUN)
    assert (gpu, slot.sm_share_pct) == (watched.gpus[1], 50)


async def test_a_job_that_waited_too_long_to_be_measured_runs_without_a_profile(
    user: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, None, "chat")
    await submit(user, "a")
    await wanted(watched, "a", Purpose.PROFILE)
    sent_s = time.monotonic()
    await submit(user, "b")
    gpu, _ = await wanted(watched, "b", Purpose.RUN)
    assert time.monotonic() - sent_s >= PATIENCE_S
    assert gpu == watched.gpus[1]
    await told(
        user, "b", f"it runs without a profile: no GPU without an online workload was free within {PATIENCE_S:g} s"
    )


async def test_where_every_gpu_serves_somebody_nobody_waits_to_be_measured(user: Bus, watched: ScriptedNode) -> None:
    await open_gpus(watched, "chat", "search")
    await submit(user, "x")
    await wanted(watched, "x", Purpose.RUN)
    await told(user, "x", "it runs without a profile: every GPU that fits serves an online workload")


async def test_a_measurement_that_failed_lets_its_jobs_run_without_a_profile(
    user: Bus, profiler: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, None, "chat")
    await submit(user, "x")
    gpu, slot = await wanted(watched, "x", Purpose.PROFILE)
    await watched.started(gpu, slot)
    await until_state(user, "x", JobState.PROFILING)
    await measured(profiler, "x", failure="it was never steady")
    await wanted(watched, "x", Purpose.RUN)
    reply = await told(user, "x", "it runs without a profile: it was never steady")
    assert reply.profile == "it could not be measured on T4: it was never steady"
    await submit(user, "same", profile_key="x")
    gpu, _ = await wanted(watched, "same", Purpose.RUN)
    assert gpu == watched.gpus[1]


async def test_a_job_leaves_a_gpu_where_it_cannot_be_measured_alone_any_more(user: Bus, watched: ScriptedNode) -> None:
    await open_gpus(watched, None, None)
    await submit(user, "x")
    gpu, slot = await wanted(watched, "x", Purpose.PROFILE)
    await watched.started(gpu, slot)
    await until_state(user, "x", JobState.PROFILING)
    await watched.serves(gpu, "chat", 40.0)
    await watched.withdrawn("x")
    await watched.exited(gpu, slot, code=None, stopped_by=StopCause.DECISION)
    other, _ = await wanted(watched, "x", Purpose.PROFILE, attempt=2)
    assert other != gpu
    await told(user, "x", "it was to be measured alone, and chat is served there now")


async def test_what_was_measured_while_no_scheduler_led_is_known_to_the_next(
    world: World, user: Bus, profiler: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, None, "chat")
    await submit(user, "x")
    gpu, slot = await wanted(watched, "x", Purpose.PROFILE)
    await watched.started(gpu, slot)
    await until_state(user, "x", JobState.PROFILING)
    world.services["scheduler"].kill()
    await measured(profiler, "x")
    world.services["scheduler"].start()
    await wanted(watched, "x", Purpose.RUN)
    await submit(user, "same", profile_key="x")
    await wanted(watched, "same", Purpose.RUN)


async def test_where_nobody_watches_nobody_is_measured(user: Bus, node: ScriptedNode) -> None:
    await submit(user, "x")
    _, slot = await node.slot("x")
    assert slot.purpose is Purpose.RUN
    reply = await status(user, "x")
    assert [step.stimulus for step in reply.record.story] == ["submit", "assign"]


async def test_the_sm_share_follows_a_forecast_while_it_holds(
    user: Bus, operator: Bus, profiler: Bus, watched: ScriptedNode
) -> None:
    await open_gpus(watched, "chat", "search")
    for workload, peak_pct, until_s in (("chat", 70.0, 600), ("search", 70.0, -1)):
        forecast = OnlineProfile(
            workload=workload,
            gpu_kind="T4",
            forecast_peak_pct=peak_pct,
            forecast_until_ns=time.time_ns() + until_s * SECOND_NS,
        )
        await profiler.publish(PROFILES_ONLINE, forecast, workload=workload, gpu_kind="T4")

    async def devices() -> dict[str, DeviceSummary]:
        with contextlib.suppress(NoResponders):
            reply = await operator.request(QUERY_DEVICES, DevicesQuery(), timeout_s=5, tenant=ALL_TENANTS)
            return {each.workload: each for each in reply.devices}
        return {}

    found = await until(devices, lambda found: found and found["search"].forecast_peak_pct is not None)
    assert {name: each.next_sm_share_pct for name, each in found.items()} == {"chat": 20, "search": 50}
    assert {each.forecast_peak_pct for each in found.values()} == {70.0}


async def test_a_scheduler_takes_over_thousands_of_unmeasured_jobs_within_its_lease(
    world: World, user: Bus, operator: Bus
) -> None:
    """One that holds up its event loop for longer than its lease lasts loses it, again and again."""
    await asyncio.gather(*(submit(user, f"j{number}") for number in range(2000)))
    await until(lambda: _jobs(operator), lambda total: total == 2000)
    scheduler = world.services["scheduler"]
    scheduler.kill()
    scheduler.start()
    await until(lambda: _jobs(operator), lambda total: total == 2000)
    leading = [json.loads(line) for line in scheduler.log.read_text().splitlines() if '"leading"' in line]
    assert leading[-1]["jobs"] >= 1000  # the others were not written yet when it was killed
    assert leading[-1]["took_s"] < 3.0


async def _jobs(operator: Bus) -> int:
    with contextlib.suppress(NoResponders):
        reply = await operator.request(QUERY_JOBS, JobsQuery(limit=1), timeout_s=5, tenant=ALL_TENANTS)
        return int(reply.total)
    return 0
