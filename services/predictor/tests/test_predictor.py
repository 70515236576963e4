"""The predictor as a service: a real server, a scripted profiler, real trainings."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from muxflow.bus import ObjectStore, PublishRefused, QueryError
from muxflow.contracts import ALL_TENANTS, Role
from muxflow_decisions.speed import ModelPolicy
from muxflow_predictor import answers
from muxflow_predictor import service as predicting
from muxflow_predictor.measurements import OBJECT
from muxflow_predictor.models import STORE
from predicting_room import KIND, OWN_ROWS_ONLY, TENANT, Room, key, pair, truth, until


async def test_without_any_profile_every_speed_is_assumed_and_low(room: Room) -> None:
    await room.start(settle_s=3600.0)
    reply = await room.speeds(pair(1, 1), pair(1, 1, sm_share_pct=80), pair(1, None))
    assert [speed.basis for speed in reply.speeds] == ["assumed", "assumed", "assumed"]
    narrow, wide, alone = reply.speeds
    assert narrow.normalized_throughput < wide.normalized_throughput < alone.normalized_throughput == 1
    assert reply.version == ""


async def test_a_pair_that_was_measured_answers_with_what_was_measured(room: Room) -> None:
    await room.service(1)
    await room.job(1)
    await room.beside(1, 1, 0.55)
    await room.start(settle_s=3600.0)
    (speed,) = (await room.speeds(pair(1, 1))).speeds
    assert (speed.basis, speed.normalized_throughput) == ("measured", 0.55)
    assert speed.low < 0.55 < speed.high
    (other,) = (await room.speeds(pair(1, 1, sm_share_pct=80))).speeds
    assert other.basis == "assumed"


async def test_a_pair_that_ran_out_of_memory_at_once_is_not_tried_again(room: Room) -> None:
    await room.service(1)
    await room.job(1)
    await room.beside(1, 1, normalized_throughput=None, fits=False)
    await room.start(settle_s=3600.0)
    for share in (40, 80):
        (speed,) = (await room.speeds(pair(1, 1, sm_share_pct=share))).speeds
        assert (speed.basis, speed.fits_probability) == ("assumed", 0)


async def test_a_new_measurement_changes_the_answer_and_the_generation(room: Room) -> None:
    await room.service(1)
    await room.job(1)
    await room.start(settle_s=3600.0)
    before = await room.speeds(pair(1, 1))
    assert (await room.speeds(pair(1, 1))).generation == before.generation
    await room.beside(1, 1, 0.7)
    async with asyncio.timeout(10):
        while (now := await room.speeds(pair(1, 1))).generation == before.generation:
            await asyncio.sleep(0.01)
    assert now.generation > before.generation
    assert now.speeds[0].normalized_throughput == 0.7


async def test_profiles_that_say_about_the_same_leave_answers_as_they_are(room: Room) -> None:
    await room.service(1)
    await room.start(settle_s=3600.0)
    before = await room.speeds(pair(1, 1))
    await room.service(1, activity_pct_mean=20.2, forecast_peak_pct=51.0)
    await room.service(2)
    async with asyncio.timeout(10):
        while (now := await room.speeds(pair(1, 1))).generation == before.generation:
            await asyncio.sleep(0.01)
    assert now.generation == before.generation + 1, "only the new service counts"
    assert now.speeds == before.speeds


async def test_more_pairs_than_fit_into_one_question_are_refused(room: Room) -> None:
    await room.start(settle_s=3600.0)
    with pytest.raises(QueryError, match="at most 2000"):
        await room.speeds(*[pair(1, 1)] * 2001)


async def test_a_model_is_trained_from_measurements_told_and_asked(room: Room) -> None:
    await room.world(range(12), range(6))
    await room.job(99)
    await room.start(policy=OWN_ROWS_ONLY)
    model = await room.await_model()
    assert model.measured_on == "this cluster"
    assert model.trained_rows + model.held_out_rows == 72
    assert model.evaluation["mae"] < 0.1
    reply = await room.speeds(pair(99, 1), pair(3, 4), pair(77, 1))
    new, measured, unknown = reply.speeds
    assert [new.basis, measured.basis, unknown.basis] == ["model", "measured", "assumed"]
    assert measured.normalized_throughput == truth(3, 4)
    assert 0.3 < new.low <= new.normalized_throughput <= new.high
    many = await room.speeds(
        *(pair(99, service, sm_share_pct=share) for service in range(6) for share in range(1, 101))
    )
    assert len(many.speeds) == 600


async def test_one_measurement_of_a_job_moves_its_predictions_beside_all_others(room: Room) -> None:
    await room.world(range(12), range(6))
    await room.job(98)
    await room.job(99)
    await room.start(policy=OWN_ROWS_ONLY)
    await room.await_model()
    before = (await room.speeds(pair(99, 3))).speeds[0]
    await room.beside(98, 1, 0.05)
    await room.beside(99, 1, 0.95)

    async def moved() -> bool:
        slow, fast = (await room.speeds(pair(98, 3), pair(99, 3))).speeds
        return bool(slow.normalized_throughput < before.normalized_throughput < fast.normalized_throughput)

    async with asyncio.timeout(10):
        while not await moved():
            await asyncio.sleep(0.02)


async def test_a_restart_serves_the_stored_model_at_once_and_keeps_old_measurements(room: Room) -> None:
    await room.world(range(12), range(6))
    first = await room.start(policy=OWN_ROWS_ONLY)
    model = await room.await_model()
    await room.beside(1, 1, 0.2)  # the profiler's last word on this pair takes the place of the one before
    await until(lambda: len(first._measurements) == 73, "it is taken in")
    await room.stop()
    second = await room.start(settle_s=3600.0, policy=OWN_ROWS_ONLY)
    assert (await room.await_model()).version == model.version
    assert len(second._measurements) == 73


@pytest.mark.parametrize("damage", ["chunks", "text"])
async def test_a_damaged_model_is_named_in_the_log_and_trained_anew(
    room: Room, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await room.world(range(12), range(6))
    await room.start(policy=OWN_ROWS_ONLY)
    model = await room.await_model()
    await room.stop()
    async with await room.server.connect(Role.PREDICTOR) as bus:
        if damage == "text":
            await bus.objects(STORE).put(model.object_name, b"{}")
        else:
            await bus.objects(STORE).delete(model.object_name)
    await room.start(policy=OWN_ROWS_ONLY)
    assert (await room.await_model(other_than=model.version)).version != model.version
    assert model.object_name in capsys.readouterr().out


async def test_damaged_measurements_are_named_in_the_log_and_profiles_bring_back_the_newest(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    await room.world(range(2), range(2))
    async with await room.server.connect(Role.PREDICTOR) as bus:
        await bus.objects(STORE).put(OBJECT, b"garbage")
    predictor = await room.start(settle_s=3600.0)
    await until(lambda: len(predictor._measurements) == 4, "the newest are there")
    assert OBJECT in capsys.readouterr().out


async def test_a_model_that_is_refused_does_not_serve(room: Room) -> None:
    await room.world(range(12), range(6))
    await room.start(policy=OWN_ROWS_ONLY)
    model = await room.await_model()
    await room.stop()
    predictor = await room.start(policy=replace(OWN_ROWS_ONLY, retrain_rows=1, held_out_rows_min=1000))
    await room.beside(0, 0, sm_share_pct=41)
    refused = predictor._metrics.trainings.labels("refused")
    await until(lambda: refused._value.get() >= 1, "a model that nobody can judge is refused")
    assert (await room.await_model()).version == model.version
    assert predictor._metrics.trainings.labels("promoted")._value.get() == 0


async def test_a_training_process_that_is_killed_does_no_harm(room: Room) -> None:
    await room.world(range(12), range(6))
    predictor = await room.start(policy=OWN_ROWS_ONLY, training_retry_s=0.05)
    killed = await _kill_training()
    await until(lambda: predictor._metrics.trainings.labels("failed")._value.get() == 1, "it is counted")
    assert killed
    (speed,) = (await room.speeds(pair(1, 1))).speeds
    assert speed.basis == "measured"
    await room.await_model()


async def test_a_store_that_has_no_room_costs_a_training_and_no_answer(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise PublishRefused(10077, "maximum bytes exceeded")

    monkeypatch.setattr(predicting, "_SAVE_AFTER_S", 0.05)
    await room.world(range(12), range(6))
    with monkeypatch.context() as full:
        full.setattr(ObjectStore, "put", refuse)
        predictor = await room.start(policy=OWN_ROWS_ONLY, training_retry_s=0.05)
        await until(lambda: predictor._metrics.trainings.labels("failed")._value.get() >= 1, "it is counted", 40)
        assert predictor._measurements.unsaved
        (speed,) = (await room.speeds(pair(1, 1))).speeds
        assert speed.basis == "measured"
    await room.await_model()
    await until(lambda: not predictor._measurements.unsaved, "they are kept")


async def test_a_question_is_answered_whatever_another_one_forgets_meanwhile(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_CACHED_MAX", 0)
    await room.world(range(12), range(6))
    predictor = await room.start(policy=OWN_ROWS_ONLY)
    await room.await_model()
    await room.speeds(pair(1, 1))
    unknown = [pair(job, 1, sm_share_pct=80) for job in (2, 3)]
    found = await asyncio.gather(
        predictor._answers._speeds(unknown[:1]), predictor._answers._speeds([pair(1, 1), *unknown[1:]])
    )
    assert [[speed.basis for speed in each] for each in found] == [["model"], ["measured", "model"]]


async def test_a_user_is_told_of_each_service_and_of_own_jobs_only(room: Room) -> None:
    await room.service(1)
    await room.service(2, forecast_peak_pct=80.0)
    await room.job(1)
    await room.beside(1, 2, 0.3, sm_share_pct=10)
    await room.start(settle_s=3600.0)
    reply = await room.predict(1)
    alone, first, second = reply.predictions
    assert (reply.gpu_kind, reply.profiled, reply.model) == (KIND, True, None)
    assert (alone.workload, alone.sm_share_pct, alone.speed.normalized_throughput) == (None, None, 1)
    assert (first.workload, first.sm_share_pct, first.speed.basis, first.measured) == ("service-1", 40, "assumed", None)
    assert (second.workload, second.sm_share_pct, second.speed.basis, second.measured) == (
        "service-2",
        10,
        "measured",
        0.3,
    )
    assert first.online_activity_pct == 20
    assert first.speed.fits_probability == 1
    with pytest.raises(QueryError, match="no profile of tenant"):
        await room.predict(1, asker=room.operator, tenant="other")
    assert (await room.predict(1, asker=room.operator, tenant=ALL_TENANTS)).profiled
    assert key(1).startswith(TENANT)


async def test_the_shipped_measurements_make_the_first_model(room: Room) -> None:
    await room.start(policy=ModelPolicy())
    model = await room.await_model()
    assert model.measured_on == "simulated GPUs"
    assert model.evaluation["mae"] < 0.2


async def _kill_training() -> bool:
    """Kill the training process as soon as there is one."""

    def children() -> list[int]:
        found = []
        for children in Path("/proc/self/task").glob("*/children"):
            for pid in children.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"muxflow_predictor.train" in command:
                    found.append(int(pid))
        return found

    await until(children, "there is a training process")
    os.kill(children()[0], signal.SIGKILL)
    return True
